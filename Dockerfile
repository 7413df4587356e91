# syntax=docker/dockerfile:1
# Three targets: service (no torch), worker (torch for CPUs), worker-gpu (torch with CUDA).

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pared ./pared
COPY service ./service
COPY worker ./worker
COPY migrations ./migrations
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PARED_DATA_DIR=/data PARED_OBJECTS_URL=file:///objects
# The volumes take their owner from these folders.
RUN useradd --uid 10001 --create-home pared && install -d -o pared -g pared -m 0750 /data /objects
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /dist /dist
VOLUME ["/data", "/objects"]

FROM base AS service
RUN pip install --constraint /tmp/constraints.txt "$(echo /dist/*.whl)[service,s3,tracing]" && ! python -c 'import torch' 2>/dev/null
USER 10001
ENV PARED_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["pared", "api"]

FROM base AS worker
# Of two builds of one version pip takes the one with a local label, which is the CPU build of this index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url "$TORCH_INDEX" --constraint /tmp/constraints.txt "$(echo /dist/*.whl)[worker,onnx,text,hf,s3,tracing]"
USER 10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["pared", "worker", "--check"]
# TERM hands the running job back to the queue.
STOPSIGNAL SIGTERM
CMD ["pared", "worker"]

FROM base AS worker-gpu
RUN pip install --constraint /tmp/constraints.txt "$(echo /dist/*.whl)[worker,onnx,text,hf,gpu,s3,tracing]"
USER 10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["pared", "worker", "--check"]
STOPSIGNAL SIGTERM
CMD ["pared", "worker"]
