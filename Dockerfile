# The search service on the CPU. In a clone:
#     docker build -t clip_ft .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/my_shop:/shop:ro" -e CLIP_FT_API_KEY clip_ft
# The project (catalogue, model and embeddings) is mounted read-only. Inside, the service listens to all addresses, so it
# requires the API key; -p decides who reaches it. Options of clip_ft_serve can be added at the end.
FROM python:3.11-slim AS build
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /venv
# PyTorch without CUDA, which would take several gigabytes. Its requirements follow with the others.
RUN /venv/bin/pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)"
COPY settings.ini setup.py MANIFEST.in README.md LICENSE ./
COPY clip_ft clip_ft
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --system --uid 10001 --no-create-home clip_ft
USER 10001
ENV PATH=/venv/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["clip_ft_serve", "--root", "/shop", "--host", "0.0.0.0"]
