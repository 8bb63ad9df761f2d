"""Kinds of values in a spec: what each part is built of, and how it is written.

Every bound here reaches users through the schema, so each is one that the API server can check.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from glinthawk_operator.crd.quantity import MAX_LENGTH, PATTERN, parse_quantity


class Part(BaseModel):
    """What every part of the resource is: frozen, in camelCase outside, without unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True
    )


def _read_quantity(value: Any) -> Any:
    """Return a quantity that was written as a bare number as text, as Kubernetes does."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value


def _check_quantity(value: str) -> str:
    parse_quantity(value)
    return value


QUANTITY_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "maxLength": MAX_LENGTH,
    "pattern": PATTERN,
    "x-kubernetes-int-or-string": True,
}
"""The one form of alternative that a structural schema has."""

Quantity = Annotated[
    str,
    BeforeValidator(_read_quantity),
    AfterValidator(_check_quantity),
    WithJsonSchema(QUANTITY_SCHEMA),
]

AS_SET: JsonDict = {"x-kubernetes-list-type": "set"}
ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}
ATOMIC_MAP: JsonDict = {"x-kubernetes-map-type": "atomic"}
"""How the API server merges what several managers apply: by item, or the whole of it."""


def keyed_by(key: str) -> JsonDict:
    """Return the mark of a list whose items are merged by a key of theirs."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
QUALIFIED_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_NAME)]
"""The name of another object in the resource's namespace, or of one that has no namespace."""

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=QUALIFIED_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
AnnotationValue = Annotated[str, Field(max_length=4096)]
Text = Annotated[str, Field(min_length=1, max_length=253)]

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[LabelKey, AnnotationValue], Field(max_length=64)]

Percent = Annotated[int, Field(ge=1, le=100)]
NumberFormat = Literal["auto", "float16", "bfloat16", "float32"]
Transport = Literal["auto", "tcp", "grpc"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
Device = Literal["auto", "cpu", "cuda"]
WhenDeleted = Literal["Retain", "Delete"]
Switch = Literal["Auto", "Enabled", "Disabled"]
"""Not on and off: YAML reads those as true and false."""

DAY_S = 24 * 3600
