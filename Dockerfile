# syntax=docker/dockerfile:1
# The service with its native ops, for a CPU:
#   docker build -t tokenfold .
#   docker run --rm -p 8000:8000 tokenfold
# With bundles of your own:
#   docker run --rm -p 8000:8000 -v "$PWD/bundles:/bundles:ro" tokenfold serve --bundles /bundles
# Galleries that outlive the container:
#   docker run --rm -p 8000:8000 -v tokenfold:/data tokenfold
# For an NVIDIA GPU, with a driver of CUDA 13 (580 or newer) and NVIDIA's container toolkit; the engines that TensorRT
# builds are kept in /engines:
#   docker build --target gpu -t tokenfold:gpu .
#   docker run --rm --gpus 1 -p 8000:8000 -v "$PWD/bundles:/bundles:ro" -v tokenfold-engines:/engines \
#       tokenfold:gpu serve --bundles /bundles
#
# `cpu` is the last stage, and so the target where none is named. BuildKit skips the stages that a target does not need.

# Both stages of a target are of one system: the ops and the virtual environment must find the libraries they were
# made for.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# Followed by -devel-ubuntu24.04 or -base-ubuntu24.04, whose Python is 3.12. CUDA 13.0 and not the newest 13: what it
# compiles runs with every driver of CUDA 13.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2

FROM ${PYTHON_IMAGE} AS cpu-build
# Debian takes a version away when the next one is out, so a pinned one would fail within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# In its own layer, and first: it changes least.
COPY Makefile ./
COPY native/ native/
# Not `optional-plugins`: an image without them would be a slow one, unnoticed.
RUN make plugins
COPY pyproject.toml README.md ./
COPY export/ export/
COPY models/ models/
COPY service/ service/
COPY tokenfold/ tokenfold/
# Not editable: the environment must hold all it needs, as nothing else is copied to the next stage.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tokenfold \
    && /opt/tokenfold/bin/pip install --disable-pip-version-check '.[cpu]'

FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS gpu-build
# Debian's keyring, for the signature of ONNX Runtime's headers, which come from there. Not interactive: tzdata, which
# Python brings, would ask where we are.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes \
        cmake debian-archive-keyring g++ make python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Makefile ./
COPY native/ native/
# Such as 90, for an H100 alone: minutes less. By default all of native/kernels/architectures.txt.
ARG CUDA_ARCHITECTURES=
RUN make plugins plugins-cuda plugins-tensorrt CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES}"
COPY pyproject.toml README.md ./
COPY export/ export/
COPY models/ models/
COPY service/ service/
COPY tokenfold/ tokenfold/
# PyPI's package of TensorRT's libraries is a stub, which fetches the real one from https://pypi.nvidia.com.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/tokenfold \
    && /opt/tokenfold/bin/pip install --disable-pip-version-check '.[gpu,tensorrt]'

# Not `cudnn-runtime`, nor NVIDIA's image of TensorRT: the environment brings CUDA's libraries, cuDNN and TensorRT as
# packages, in the versions that ONNX Runtime and TensorRT ask for, and the image's own would be gigabytes that nothing
# loads. What `base` has over a plain Ubuntu: containers are given the driver, and refused where it is too old for CUDA
# 13, unless it is one of those for data centres that cuda-compat, also there, makes do.
FROM ${CUDA_IMAGE}-base-ubuntu24.04 AS gpu
# The Python that the environment was made with.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes python3 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 tokenfold \
    && useradd --uid 10001 --gid tokenfold --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin tokenfold \
    && install --directory --owner=10001 --group=10001 /data /engines
COPY --from=gpu-build /opt/tokenfold /opt/tokenfold
# It takes the product's name for a secret, a "token".
# hadolint ignore=DL3064
ENV PATH=/opt/tokenfold/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFOLD_DATA_DIR=/data \
    TOKENFOLD_ENGINES=/engines \
    TOKENFOLD_HOST=0.0.0.0 \
    TOKENFOLD_PORT=8000
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
# Galleries, and TensorRT's engines, which take minutes to build. A named volume begins with the owner that the folder
# has here.
VOLUME /data /engines
# Alive, and not ready: warming up, or building engines, is no reason to be ended. The image has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['TOKENFOLD_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["tokenfold"]
CMD ["serve"]

# As `gpu`, but that Python is there, and no engines.
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
