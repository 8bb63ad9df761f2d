# A stage: the weights and everything but attention over the cache, on a GPU or on CPU cores.
#   make images BASE=IMAGE TAG=TAG
# BASE: an image of Debian or Ubuntu with Python 3.11 or newer, such as one with CUDA; Python is
# installed where BASE has none. torch brings its own CUDA libraries.
ARG BASE=python:3.11-slim-bookworm

# These two stages are the same for all images of the services, so they are built once.
FROM ${BASE} AS tools
# The compiler comes as BASE has it, and is in no result.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY services/images/locks/build.txt /locks/
RUN python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --requirement /locks/build.txt

FROM tools AS wheel
ENV PATH=/tools/bin:$PATH
COPY pyproject.toml CMakeLists.txt README.md LICENSE /source/
COPY services/glinthawk /source/services/glinthawk
COPY operator/glinthawk_operator /source/operator/glinthawk_operator
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /source

FROM tools AS build
COPY services/images/locks/stage.txt /locks/
# TORCH_INDEX: a package index with the torch that is wanted, such as one for another CUDA.
ARG TORCH_INDEX=
RUN python3 -m venv --without-pip /opt/glinthawk \
    && if [ -n "${TORCH_INDEX}" ]; then \
        /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --index-url "${TORCH_INDEX}" --constraint /locks/stage.txt torch; \
    fi \
    && /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --requirement /locks/stage.txt
COPY --from=wheel /wheels /wheels
RUN /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/glinthawk/bin/python -c "import glinthawk.stage.server"

FROM ${BASE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="glinthawk-stage" \
    org.opencontainers.image.description="The weights of a run of layers" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}"
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*)
COPY --from=build /opt/glinthawk /opt/glinthawk
ENV PATH=/opt/glinthawk/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GLINTHAWK_LOG_FORMAT=json
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["glinthawk"]
CMD ["stage"]
