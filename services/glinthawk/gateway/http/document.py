"""The description of an API, /openapi.json: the framework's, made true.

Routes that read a body themselves name its shape by reference, so the document must carry it; and
the framework describes an answer of its own to wrong parameters, a 422, which is never given here.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"
_NOT_GIVEN = "422"
_ITS_MODELS = ("HTTPValidationError", "ValidationError")


def describe_app(app: FastAPI, described: Iterable[type[BaseModel]]) -> None:
    """Fix what /openapi.json says of an application whose routes are all there.

    described: models that routes name by reference.
    """
    document = _build_document(app, described)
    app.openapi = lambda: document  # type: ignore[method-assign]


def _build_document(app: FastAPI, described: Iterable[type[BaseModel]]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop(_NOT_GIVEN, None)
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _ITS_MODELS:
        components.pop(name, None)
    _, definitions = models_json_schema(
        [(model, "validation") for model in described], ref_template=_REFERENCE
    )
    components.update(definitions.get("$defs", {}))
    return document
