# Everything is installed into .venv; a fresh machine needs Python 3.11 (or later) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := runs/demo
NOTEBOOK_DEMO := runs/notebooks
# The project that `make app` shows.
ROOT ?= $(DEMO)
# Let waiting OpenMP threads sleep. By default they spin and occupy the cores, which makes training several times slower
# as soon as another program runs.
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help demo demo-commands docs lab app web test test-with-demo test-without-demo test-notebooks test-python lint docs-check notebooks clean-notebooks screenshot hooks clean

help: ## List the targets (also: plain make)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Rebuilt when a pin or a requirement changes. A failed installation leaves no stamp, so the next make repeats it. pip
# compiles with one process, compileall with one per core; it fails on templates that packages ship as .py files.
.venv/ready: settings.ini setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clip_ft needs Python 3.11 or later; set it with make PYTHON=...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || :
	touch $@

demo: .venv/ready ## Draw a catalogue, train a tiny model on it, evaluate it, embed the catalogue and search it
	@$(MAKE) --no-print-directory demo-commands DEMO=$(DEMO)

demo-commands:
	$(BIN)/clip_ft_get_data --root $(DEMO) --source demo
	$(BIN)/clip_ft_preprocess --root $(DEMO)
	$(BIN)/clip_ft_train --root $(DEMO) --model tiny --demo
	$(BIN)/clip_ft_evaluate --root $(DEMO)
	$(BIN)/clip_ft_embed --root $(DEMO)
	$(BIN)/clip_ft_search blue jeans --root $(DEMO) --save-grid $(DEMO)/blue-jeans.png

lab: .venv/ready $(if $(filter $(DEMO),$(ROOT)),$(DEMO)/blue-jeans.png) ## Open the search page in JupyterLab (ROOT: a project; LAB_FLAGS: options of JupyterLab, such as --no-browser)
	CLIP_FT_ROOT='$(abspath $(ROOT))' $(BIN)/jupyter lab $(LAB_FLAGS) nbs/start.ipynb

app: .venv/ready ## Serve the search page to visitors (ROOT: a project, by default the demo; APP_FLAGS: options of clip_ft_app)
	$(BIN)/clip_ft_app --root $(ROOT) $(APP_FLAGS)

web: $(NOTEBOOK_DEMO)/blue-jeans.png ## Write the search page of the demo as files that any web host can serve: runs/web
	$(BIN)/clip_ft_export --root $(NOTEBOOK_DEMO) --web runs/web

# Two halves side by side, with one thread each so that they do not compete for the same cores: the demo and the notebooks
# from 35 on, most of which read it; the notebooks before them and tests/. Each step also runs after a failure of another one.
WITHOUT_DEMO := ^([0-2]|3[0-4])
test: .venv/ready ## Run the demo, all notebooks and all tests
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -k -j2 test-with-demo test-without-demo

test-with-demo: $(NOTEBOOK_DEMO)/blue-jeans.png
	$(BIN)/python .ci/test_notebooks.py --n_workers 0 --do_print --skip_file_re '^[_.]|$(WITHOUT_DEMO)'

test-without-demo: .venv/ready
	failed=0; $(BIN)/python .ci/test_notebooks.py --n_workers 0 --do_print --file_re '$(WITHOUT_DEMO)' || failed=1; \
		$(MAKE) --no-print-directory test-python || failed=1; exit $$failed

# The demo of `make lab` and that of the notebooks, each trained once.
$(sort $(DEMO)/blue-jeans.png $(NOTEBOOK_DEMO)/blue-jeans.png): | .venv/ready
	@echo "$(@D) is missing: its products are drawn and a tiny model is trained, once; this takes a few minutes."
	@$(MAKE) --no-print-directory demo DEMO=$(@D)

test-notebooks: .venv/ready $(NOTEBOOK_DEMO)/blue-jeans.png ## Run all notebooks
	$(BIN)/python .ci/test_notebooks.py --n_workers 0 --do_print --timing

test-python: .venv/ready ## Run all tests of tests/
	$(BIN)/python -m pytest -q tests

lint: .venv/ready ## Check style with ruff and types with mypy
	failed=0; $(BIN)/ruff check || failed=1; $(BIN)/mypy || failed=1; exit $$failed

docs-check: .venv/ready ## Check that the documentation builds and that README.md is up to date
	$(BIN)/python .ci/check_docs.py

# nbdev_docs rewrites a README.md that is older than nbs/index.ipynb. "Try it" links to the search page of the demo.
docs: $(NOTEBOOK_DEMO)/blue-jeans.png ## Render the documentation to _docs; needs Quarto, and fails if it warns
	touch README.md
	log=$$(mktemp) && { PATH="$$PWD/$(BIN):$$PATH" nbdev_docs 2>&1 | tee "$$log"; } && test -s _docs/index.html && ! grep WARN "$$log"
	$(BIN)/clip_ft_export --root $(NOTEBOOK_DEMO) --web _docs/try

notebooks: .venv/ready ## Run all notebooks, save the outputs that readers see, and write README.md
	cd nbs && for notebook in [0-9]*.ipynb tutorials/*.ipynb reference/*.ipynb experiments.ipynb benchmarks.ipynb index.ipynb; do \
		../$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace $$notebook || exit 1; \
	done
	$(MAKE) clean-notebooks
	$(BIN)/python .ci/check_docs.py --write-readme

clean-notebooks: .venv/ready ## Remove widget state, progress bars and other noise from the notebooks
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/clean_notebooks.py

screenshot: .venv/ready ## Take the screenshots for README.md (needs Chromium)
	$(BIN)/python .ci/screenshot.py

hooks: .venv/ready ## Install the git hooks, once per clone
	$(BIN)/pre-commit install
	$(BIN)/nbdev_install_hooks

clean: ## Remove generated files: runs/, the documentation and caches
	rm -rf runs _proc _docs nbs/nbdev.yml .mypy_cache .ruff_cache
