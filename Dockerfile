# syntax=docker/dockerfile:1
# The service on a CPU, with its native ops:
#   docker build -t tokenfold .
#   docker run --rm -p 8000:8000 tokenfold
# With bundles of your own:
#   docker run --rm -p 8000:8000 -v "$PWD/bundles:/bundles:ro" tokenfold serve --bundles /bundles
# Galleries that outlive the container:
#   docker run --rm -p 8000:8000 -v tokenfold:/data tokenfold

# Both stages are of one image: the ops and the virtual environment must find the libraries they were made for.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Debian takes a version away when the next one is out, so a pinned one would fail within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# In its own layer, and first: it changes least.
COPY Makefile ./
COPY export/plugins/ export/plugins/
# Not `optional-plugins`: an image without them would be a slow one, unnoticed.
RUN make plugins
COPY pyproject.toml README.md tokenfold.py ./
COPY export/ export/
COPY models/ models/
COPY service/ service/
# Not editable: the environment must hold all it needs, as nothing else is copied to the next stage.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tokenfold \
    && /opt/tokenfold/bin/pip install --disable-pip-version-check '.[cpu]'

FROM ${PYTHON_IMAGE} AS cpu
RUN groupadd --gid 10001 tokenfold \
    && useradd --uid 10001 --gid tokenfold --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin tokenfold \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/tokenfold /opt/tokenfold
# It takes the product's name for a secret, a "token".
# hadolint ignore=DL3064
ENV PATH=/opt/tokenfold/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFOLD_DATA_DIR=/data \
    TOKENFOLD_HOST=0.0.0.0 \
    TOKENFOLD_PORT=8000
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
# Galleries. A named volume begins with the owner that the folder has here.
VOLUME /data
# The slim image has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['TOKENFOLD_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["tokenfold"]
CMD ["serve"]
