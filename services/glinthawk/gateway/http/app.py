"""The HTTP API put together: routes, errors and the document that describes them."""

from fastapi import FastAPI

from glinthawk import __version__
from glinthawk.gateway.api.accounts import Accounts
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.http import schemas_answers, schemas_jobs, schemas_requests
from glinthawk.gateway.http.batches import build_batch_routes
from glinthawk.gateway.http.document import describe_app
from glinthawk.gateway.http.errors import Boundary, add_error_handlers
from glinthawk.gateway.http.files import build_file_routes
from glinthawk.gateway.http.generate import build_generate_routes
from glinthawk.gateway.http.guard import build_guard
from glinthawk.gateway.http.health import build_health_routes
from glinthawk.gateway.http.metrics import HttpMetrics, Metered
from glinthawk.gateway.http.models import build_model_routes
from glinthawk.gateway.http.store_calls import StoreCalls

_DESCRIBED = (
    *schemas_answers.DESCRIBED,
    *schemas_jobs.DESCRIBED,
    *schemas_requests.DESCRIBED,
)


def build_app(services: ApiServices, accounts: Accounts | None = None) -> FastAPI:
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
    describe_app(app, _DESCRIBED)
    return app
