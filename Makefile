# Everything happens in .venv; a fresh machine needs Python 3.11 (or later) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := runs/demo
# Many small matrices on few cores: threads that wait should sleep. Spinning, they take the core that the others need, and
# as soon as another program runs beside it, training is several times slower.
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false

.PHONY: demo lab app screenshot test docs-check notebooks clean-notebooks hooks clean

# The environment, made again when a pin or a requirement changes; a broken install leaves no stamp, so the next make repairs it.
.venv/ready: settings.ini setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clip_ft needs Python 3.11 or later; name one with make PYTHON=...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The main job on the demo catalogue: draw, clean and split, train, evaluate, embed, search.
demo: .venv/ready
	$(BIN)/clip_ft_get_data --root $(DEMO) --source demo
	$(BIN)/clip_ft_preprocess --root $(DEMO)
	$(BIN)/clip_ft_train --root $(DEMO) --model tiny $(DEMO_TRAIN)
	$(BIN)/clip_ft_evaluate --root $(DEMO)
	$(BIN)/clip_ft_embed --root $(DEMO)
	$(BIN)/clip_ft_search "blue jeans" --root $(DEMO) --save-grid $(DEMO)/blue-jeans.png

DEMO_TRAIN := --epochs 20 --lr 4e-4 --patience 4 --weight-decay 0.1 --texts name=1 full_text=1 attributes=2

# LAB_FLAGS takes options of JupyterLab, such as --no-browser on a server.
lab: .venv/ready
	$(BIN)/jupyter lab $(LAB_FLAGS) nbs/65_search.ipynb

# The search page as a web page, without Jupyter: make app ROOT=my_shop. ROOT is a project's folder; APP_FLAGS takes options of Voila.
ROOT ?= $(DEMO)
app: .venv/ready
	CLIP_FT_ROOT=$(abspath $(ROOT)) $(BIN)/voila $(APP_FLAGS) nbs/app.ipynb

# The cells of all notebooks, in order and in one process, then what can't be a cell; the second even if the first failed.
test: .venv/ready
	failed=0; $(BIN)/nbdev_test --n_workers 0 --do_print --timing || failed=1; $(BIN)/python -m pytest -q tests || failed=1; exit $$failed

# Stale exports, clean notebooks, documentation; what CI checks beside the tests.
docs-check: .venv/ready
	$(BIN)/python .ci/check_docs.py

# Run all notebooks, keep the outputs that readers want, and write README.md from the first page.
notebooks: .venv/ready
	cd nbs && for o in [0-9]*.ipynb tutorials/*.ipynb index.ipynb; do ../$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace $$o || exit 1; done
	$(MAKE) clean-notebooks
	$(BIN)/python .ci/check_docs.py --write-readme

clean-notebooks: .venv/ready
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/clean_notebooks.py

# The picture of the search page that README.md shows; needs Chromium.
screenshot: .venv/ready
	$(BIN)/python .ci/screenshot.py

# Once in a clone: clean notebooks at each commit, and merge them sensibly.
hooks: .venv/ready
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf runs _proc _docs nbs/nbdev.yml
