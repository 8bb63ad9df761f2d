# The gateway: the API, jobs and the scheduler, without torch.
#   make images BASE=IMAGE TAG=TAG
# BASE: an image of Debian or Ubuntu with Python 3.11 or newer and its venv module.
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
COPY services/images/locks/gateway.txt /locks/
RUN python3 -m venv --without-pip /opt/glinthawk \
    && /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --requirement /locks/gateway.txt
COPY --from=wheel /wheels /wheels
RUN /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/glinthawk/bin/python -c "import glinthawk.gateway.server"

FROM ${BASE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="glinthawk-gateway" \
    org.opencontainers.image.description="The API, jobs and the scheduler" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/glinthawk /opt/glinthawk
# TOKENIZERS_PARALLELISM is no secret, though it sounds like one.
# hadolint ignore=DL3064
ENV PATH=/opt/glinthawk/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TOKENIZERS_PARALLELISM=false \
    GLINTHAWK_LOG_FORMAT=json
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["glinthawk"]
CMD ["gateway"]
