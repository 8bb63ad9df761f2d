# The stand-in hub with its model, for clusters without a way out; tests and the demo only.
# The build's folder holds hub.py and model/, in Hugging Face layout.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
LABEL org.opencontainers.image.title="glinthawk-test-hub"
# The exporter lets nobody else read its files.
COPY --chown=65532:65532 model /model
COPY hub.py /hub.py
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["python3", "/hub.py"]
CMD ["--folder", "/model", "--repository", "demo/smollm2-135m", "--port", "8080"]
