# The operator: Kubernetes' side, without any of the services.
#   make images BASE=IMAGE TAG=TAG
# BASE: an image of Debian or Ubuntu with Python 3.11 or newer and its venv module.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
COPY services/images/locks/build.txt services/images/locks/operator.txt /locks/
RUN python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --requirement /locks/build.txt \
    && python3 -m venv --without-pip /opt/glinthawk \
    && /tools/bin/pip --python /opt/glinthawk/bin/python install --no-cache-dir --requirement /locks/operator.txt
COPY operator/glinthawk_operator /opt/glinthawk/operator/glinthawk_operator
RUN PYTHONPATH=/opt/glinthawk/operator /opt/glinthawk/bin/python -m compileall -q /opt/glinthawk/operator \
    && PYTHONPATH=/opt/glinthawk/operator /opt/glinthawk/bin/python -m glinthawk_operator --help >/dev/null

FROM ${BASE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="glinthawk-operator" \
    org.opencontainers.image.description="Runs GlinthawkDeployments on Kubernetes" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/glinthawk /opt/glinthawk
ENV PATH=/opt/glinthawk/bin:$PATH \
    PYTHONPATH=/opt/glinthawk/operator \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=glinthawk
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "glinthawk_operator"]
