"""Starts the operator: `python -m glinthawk_operator`, settings from the environment.

Exit codes: 0 stopped, 1 it cannot go on, 2 wrong settings.
"""

import os
import sys

import kopf
from prometheus_client import CollectorRegistry

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.connection import connect
from glinthawk_operator.errors import InvalidSettings
from glinthawk_operator.handlers import register
from glinthawk_operator.health import PageServer, health_page, metrics_page
from glinthawk_operator.logs import configure_logging, get_logger
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.process import Workers, build_parts
from glinthawk_operator.settings import Settings, describe_settings, load_settings

log = get_logger("main")


def run(settings: Settings) -> int:
    """Run the operator until a signal ends it.

    Raises:
        InvalidSettings: a port is taken, or no API server is known.
    """
    metrics = OperatorMetrics(CollectorRegistry())
    cluster = Cluster(
        connect(),
        deadline_s=settings.api_timeout_seconds,
        observe=lambda verb, kind, code: metrics.api_requests.labels(verb, kind, code).inc(),
    )
    parts = build_parts(cluster, settings, metrics)
    workers = Workers(parts)
    registry = kopf.OperatorRegistry()
    register(registry, parts, workers)
    health = PageServer(
        settings.host, settings.health_port, {"/healthz": health_page(lambda: workers.is_alive)}
    )
    pages = PageServer(
        settings.host, settings.metrics_port, {"/metrics": metrics_page(metrics.registry)}
    )
    log.info("starting", health_port=health.port, metrics_port=pages.port)
    try:
        kopf.run(
            registry=registry,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=list(settings.namespaces),
        )
    finally:
        health.close()
        pages.close()
    log.info("stopped")
    return 0


def main() -> None:
    """Run, and exit with the code."""
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(describe_settings())
        sys.exit(0)
    os.environ.setdefault("USER", "glinthawk")  # kopf asks for the user's name
    try:
        settings = load_settings(os.environ, sys.argv[1:])
        configure_logging(settings.log_level, settings.log_format)
        sys.exit(run(settings))
    except InvalidSettings as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
