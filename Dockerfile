# The runtime without torch, for a station:
#   docker build --tag snl-edge .                        ONNX Runtime on the CPU (the last stage)
#   docker build --tag snl-edge:cuda --target cuda .     ONNX Runtime on an NVIDIA GPU: CUDA 13, cuDNN 9, driver 580 or newer
# How to run them: deploy/README.md
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY snl_runtime snl_runtime
COPY snl_train snl_train
COPY export export
COPY calibration calibration
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS cpu-environment
COPY deploy/install-runtime.sh /install-runtime.sh
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    sh /install-runtime.sh /usr/local/bin/python3 /wheels/snl_edge-*.whl cpu,sign /opt/snl-edge

FROM ${CUDA_IMAGE} AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/install-runtime.sh /install-runtime.sh
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    sh /install-runtime.sh /usr/bin/python3 /wheels/snl_edge-*.whl gpu,sign /opt/snl-edge
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/snl-edge snl && install --directory --owner=snl /records
ENV PATH=/opt/snl-edge/bin:$PATH PYTHONUNBUFFERED=1 SNL_EDGE_CACHE=/var/lib/snl-edge/cache SNL_ENGINE=/model/line.onnx ORT_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /records
HEALTHCHECK --interval=5m --timeout=2m --start-period=2m --retries=2 \
    CMD ["sh", "-c", "snl-bench --engine \"$SNL_ENGINE\" --device cuda --runs 1 >/dev/null"]
ENTRYPOINT ["snl-run"]
CMD ["--help"]

FROM ${PYTHON_IMAGE} AS cpu
COPY --from=cpu-environment /opt/snl-edge /opt/snl-edge
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/snl-edge snl && install --directory --owner=snl /records
ENV PATH=/opt/snl-edge/bin:$PATH PYTHONUNBUFFERED=1 SNL_EDGE_CACHE=/var/lib/snl-edge/cache SNL_ENGINE=/model/line.onnx ORT_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /records
# Opens the model as snl-run does: hashes, golden samples on this machine's backend, one verdict per sample. It is the model of $SNL_ENGINE.
HEALTHCHECK --interval=5m --timeout=1m --start-period=1m --retries=2 \
    CMD ["sh", "-c", "snl-bench --engine \"$SNL_ENGINE\" --threads 1 --runs 1 >/dev/null"]
ENTRYPOINT ["snl-run"]
CMD ["--help"]
