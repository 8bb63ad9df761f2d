"""The HTTP API put together: routes, errors and the document that describes them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from glinthawk import __version__
from glinthawk.gateway.http import schemas, schemas_jobs
from glinthawk.gateway.http.batches import build_batch_routes
from glinthawk.gateway.http.errors import Boundary, add_error_handlers
from glinthawk.gateway.http.files import build_file_routes
from glinthawk.gateway.http.generate import build_generate_routes
from glinthawk.gateway.http.guard import build_guard
from glinthawk.gateway.http.health import build_health_routes
from glinthawk.gateway.http.limits import Accounts
from glinthawk.gateway.http.metrics import HttpMetrics, Metered
from glinthawk.gateway.http.models import build_model_routes
from glinthawk.gateway.http.services import HttpServices
from glinthawk.gateway.http.store_calls import StoreCalls

_REFERENCE = "#/components/schemas/{model}"


def build_app(services: HttpServices, accounts: Accounts | None = None) -> FastAPI:
    """Return the application. It runs in one event loop. accounts: shared with another door."""
    app = FastAPI(
        title="Glinthawk",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    guard = build_guard(services.keys)
    accounts = accounts or Accounts(services.limits)
    calls = StoreCalls()
    app.include_router(build_model_routes(services, guard))
    app.include_router(build_generate_routes(services, guard, accounts))
    app.include_router(build_file_routes(services, guard, accounts, calls))
    app.include_router(build_batch_routes(services, guard, calls))
    app.include_router(build_health_routes(services))
    add_error_handlers(app)
    app.add_middleware(Boundary)
    app.add_middleware(Metered, metrics=HttpMetrics(services.registry))
    document = _build_document(app)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


def _build_document(app: FastAPI) -> dict[str, Any]:
    """Return /openapi.json: the framework's, and the models that routes name by reference."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    described = [*schemas.DESCRIBED, *schemas_jobs.DESCRIBED]
    _, definitions = models_json_schema(
        [(model, "validation") for model in described], ref_template=_REFERENCE
    )
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components.update(definitions["$defs"])
    return document
