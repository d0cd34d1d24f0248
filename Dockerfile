# syntax=docker/dockerfile:1
# The service with its native ops, for a CPU:
#   docker build -t tokenfold .
#   docker run --rm -p 8000:8000 tokenfold
# With other bundles than the built-in ones:
#   docker run --rm -p 8000:8000 -v "$PWD/bundles:/bundles:ro" tokenfold serve --bundles /bundles
# With galleries that outlive the container:
#   docker run --rm -p 8000:8000 -v tokenfold:/data tokenfold
# For an NVIDIA GPU. The host needs a driver for CUDA 13 (580 or newer) and NVIDIA's container toolkit. The
# volume keeps the engines that TensorRT builds:
#   docker build --target gpu -t tokenfold:gpu .
#   docker run --rm --gpus 1 -p 8000:8000 -v "$PWD/bundles:/bundles:ro" -v tokenfold-engines:/engines \
#       tokenfold:gpu serve --bundles /bundles
#
# `cpu` is the last stage, and therefore the default target. BuildKit skips stages that a target does not need.

# A target's two stages use the same system, so that the op library and the virtual environment find the
# libraries that they were built with.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The stages append -devel-ubuntu24.04 or -base-ubuntu24.04, whose Python is 3.12. CUDA 13.0 rather than the
# newest 13.x: code that it compiles runs with every driver for CUDA 13.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2

FROM ${PYTHON_IMAGE} AS cpu-build
# Debian removes a package version when the next one is released, so pinned versions would soon be missing.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY requirements/ requirements/
COPY native/ native/
COPY export/ export/
COPY models/ models/
COPY service/ service/
COPY tokenfold/ tokenfold/
# Builds the wheel, which compiles the ops and fails without a compiler. Not editable: the next stage copies
# nothing but the environment.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tokenfold \
    && /opt/tokenfold/bin/pip install --disable-pip-version-check -c requirements/constraints.txt '.[cpu]'

FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS gpu-build
# Not interactive, because tzdata, which Python depends on, asks for the time zone.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes \
        cmake g++ make python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# In a layer of their own: the kernels take minutes to compile and change least.
COPY Makefile ./
COPY native/ native/
# For example 90 for an H100 alone, which saves minutes. By default all of native/kernels/architectures.txt.
ARG CUDA_ARCHITECTURES=
RUN make plugins-cuda plugins-tensorrt libraries=/opt/libraries CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES}"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY requirements/ requirements/
COPY export/ export/
COPY models/ models/
COPY service/ service/
COPY tokenfold/ tokenfold/
# A wheel contains the ops for CPUs alone, so the libraries for GPUs are copied beside them. PyPI's package of
# TensorRT's libraries is a stub, which fetches the real one from NVIDIA's package index.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/tokenfold \
    && /opt/tokenfold/bin/pip install --disable-pip-version-check -c requirements/constraints.txt '.[gpu,tensorrt]' \
    && cp /opt/libraries/*.so /opt/tokenfold/lib/python3.12/site-packages/tokenfold/runtime/native/

# Neither `cudnn-runtime` nor NVIDIA's image of TensorRT: the environment contains CUDA's libraries, cuDNN and
# TensorRT as packages, in the versions that ONNX Runtime and TensorRT require, and the image's copies would be
# gigabytes that nothing loads. Unlike plain Ubuntu, `base` makes the container runtime mount the driver and refuse
# drivers that are too old for CUDA 13, except those for data centres that its cuda-compat supports.
FROM ${CUDA_IMAGE}-base-ubuntu24.04 AS gpu
# The Python that the environment was created with.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes python3 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 tokenfold \
    && useradd --uid 10001 --gid tokenfold --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin tokenfold \
    && install --directory --owner=10001 --group=10001 /data /engines
COPY --from=gpu-build /opt/tokenfold /opt/tokenfold
# The linter takes the "token" in the product's name for a secret.
# hadolint ignore=DL3064
ENV PATH=/opt/tokenfold/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFOLD_DATA_DIR=/data \
    TOKENFOLD_ENGINES=/engines \
    TOKENFOLD_HOST=0.0.0.0 \
    TOKENFOLD_PORT=8000
# By number, so that Kubernetes can verify that it is not root.
USER 10001:10001
EXPOSE 8000
# Galleries, and TensorRT's engines, which take minutes to build. A new named volume gets the owner that its folder
# has here.
VOLUME /data /engines
# Checks liveness rather than readiness: a container that warms up or builds engines must not be stopped. The image
# has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['TOKENFOLD_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["tokenfold"]
CMD ["serve"]

# As `gpu`, except that the image contains Python, and that there are no engines.
FROM ${PYTHON_IMAGE} AS cpu
RUN groupadd --gid 10001 tokenfold \
    && useradd --uid 10001 --gid tokenfold --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin tokenfold \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=cpu-build /opt/tokenfold /opt/tokenfold
# hadolint ignore=DL3064
ENV PATH=/opt/tokenfold/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFOLD_DATA_DIR=/data \
    TOKENFOLD_HOST=0.0.0.0 \
    TOKENFOLD_PORT=8000
USER 10001:10001
EXPOSE 8000
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['TOKENFOLD_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["tokenfold"]
CMD ["serve"]
