"""The reference of the APIs, docs/api-reference.md, from the applications' own descriptions.

HTTP comes from the OpenAPI documents that the gateway itself serves, gRPC from the comments in
gateway.proto (`grpc_part`).
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from glinthawk.gateway.api.services import ApiLimits, ApiServices
from glinthawk.gateway.control import build_control_app
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.http.app import build_app
from glinthawk.gateway.http.schemas import EVENT
from glinthawk.gateway.keys import KeyRing
from glinthawk.gateway.store.sql import open_store
from grpc_part import render_grpc
from schema_words import Node, describe_kind, describe_limits, describe_value, find_references
from unit.gateway.factories import make_model

HEAD = """\
# API reference

This page is generated from the code: from `/openapi.json` of a gateway's two HTTP APIs, and from
the comments of its gRPC services. [The HTTP API](api.md) shows how to use it, with examples, and
where it differs from OpenAI's. [Operations](operations.md) says who listens on which port.

In a request a field that is absent or null has its default. Every answer has the header
`x-request-id`. The [refusals](#refusals) of all calls are listed once.
"""

USERS = """
## HTTP for users

On `--port`. "Key" says whether one is asked for, where there are any.
"""
CONTROL = """
## HTTP for operators

The control API, on `--control-port`. "Key" is the cluster's secret, where there is one.
"""
INDEX = "\n| call | what it does | key |\n| --- | --- | --- |\n"
PARAMETERS = """
| parameter | in | type | default | limits | meaning |
| --- | --- | --- | --- | --- | --- |
"""
FIELDS = "\n| field | type | default | limits | meaning |\n| --- | --- | --- | --- | --- |\n"
ANSWER_FIELDS = "\n| field | type | values | meaning |\n| --- | --- | --- | --- |\n"
ANSWERS = "\n| status | body | meaning |\n| --- | --- | --- |\n"
REFUSALS = """
## Refusals

Every answer that is not a success is an [ErrorBody](#errorbody).

| status | when |
| --- | --- |
"""
OBJECTS = "\n## Objects\n\nWhat bodies are made of.\n"
FIRST_REFUSAL = 400
_PARAGRAPH = "\n\n"


def render_api() -> str:
    """Return docs/api-reference.md."""
    documents = describe_apis()
    parts = [HEAD]
    for head, document in zip((USERS, CONTROL), documents, strict=True):
        parts += [head, *_render_index(document)]
        for method, path, operation in list_operations(document):
            parts += _render_operation(document, method, path, operation)
    parts += _render_refusals(documents)
    parts.append(OBJECTS)
    shown: dict[str, Node] = {}
    for document in documents:
        for name in _list_objects(document):
            node = document["components"]["schemas"][name]
            assert shown.get(name, node) == node, f"two different shapes are called {name}"
            if name not in shown:
                parts += _render_object(document, name, node)
            shown[name] = node
    parts += render_grpc()
    return "".join(parts)


def describe_apis() -> tuple[Node, Node]:
    """Return the OpenAPI documents for users and for operators, as a gateway with keys has them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_store(Path(folder))) as store,
    ):
        services = ApiServices(
            generation=Generation(make_model(), run_seed=0),
            store=store,
            jobs=_NoJobs(),
            keys=KeyRing(store),
            limits=ApiLimits(1, 1, 1, 1, 1),
            model_names=("any",),
            registry=CollectorRegistry(),
        )
        users = build_app(services).openapi()
    operators = build_control_app(None, "any").openapi()  # type: ignore[arg-type]
    return users, operators


class _NoJobs:
    """Runs nothing: the application is only asked what it is."""

    def batch_created(self, batch_id: str) -> None:
        raise AssertionError(batch_id)

    def batch_cancelled(self, batch_id: str) -> None:
        raise AssertionError(batch_id)


def list_operations(document: Node) -> Iterator[tuple[str, str, Node]]:
    """Yield method, path and description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# --- operations


def _render_index(document: Node) -> Iterator[str]:
    yield INDEX
    for method, path, operation in list_operations(document):
        key = "yes" if operation.get("security") else "no"
        link = f"[`{method} {path}`](#{make_anchor(f'{method} {path}')})"
        yield f"| {link} | {operation['summary']} | {key} |\n"


def _render_operation(document: Node, method: str, path: str, operation: Node) -> Iterator[str]:
    yield f"\n### {method} {path}\n\n{join_lines(operation['description'])}\n"
    parameters = operation.get("parameters", ())
    if parameters:
        yield PARAMETERS
    for one in parameters:
        default = "required" if one["required"] else describe_value(one["schema"])
        kind, limits = describe_kind(one["schema"]), describe_limits(one["schema"])
        yield _row(f"`{one['name']}`", one["in"], kind, default, limits, one["description"])
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        reference = content["schema"]["$ref"]
        node = find_node(document, reference)
        yield f"\nBody, `{media_type}`: {_lower_first(join_lines(node['description']))}\n"
        yield from _render_fields(document, node, is_answer=False)
    yield ANSWERS
    refusals = []
    for status, answer in sorted(operation["responses"].items()):
        if int(status) >= FIRST_REFUSAL:
            refusals.append(f"[{status}](#refusals)")
            continue
        for body, text in _list_bodies(answer):
            yield _row(status, body, text)
    if refusals:
        yield f"\nRefused with {', '.join(refusals)}.\n"


def _render_refusals(documents: Iterable[Node]) -> Iterator[str]:
    """Yield the table of all refusals; a status means the same wherever it is given."""
    meanings: dict[str, str] = {}
    for document in documents:
        for _, _, operation in list_operations(document):
            for status, answer in operation["responses"].items():
                if int(status) >= FIRST_REFUSAL:
                    text = answer["description"]
                    assert meanings.setdefault(status, text) == text, status
    yield REFUSALS
    for status, text in sorted(meanings.items()):
        yield _row(status, text)


def _list_bodies(answer: Node) -> Iterator[tuple[str, str]]:
    """Yield the forms of an answer: what it is, and what is said of it."""
    contents = answer.get("content", {})
    if not contents:
        yield "none", _sentence(answer["description"])
    for media_type, content in contents.items():
        schema = content["schema"]
        if EVENT in schema:
            yield f"events of {describe_kind(schema[EVENT])}", schema["description"]
        elif "$ref" in schema:
            yield describe_kind(schema), _sentence(answer["description"])
        else:
            yield f"`{media_type}`", _sentence(answer["description"])


def _sentence(text: str) -> str:
    """Return the description of an answer; the framework's own word for a success is none."""
    return "" if text == "Successful Response" else text


# --- objects


def _list_objects(document: Node) -> list[str]:
    """Return the objects that operations lead to; a request's body stands with its operation."""
    bodies = [
        content["schema"]["$ref"]
        for _, _, operation in list_operations(document)
        for content in operation.get("requestBody", {}).get("content", {}).values()
    ]
    found = _list_reached(document, document["paths"])
    return [name for name in found if f"#/components/schemas/{name}" not in bodies]


def _list_reached(document: Node, start: Any) -> list[str]:
    """Return the objects that a node leads to, each after one that names it."""
    waiting = list(find_references(start))
    found: list[str] = []
    while waiting:
        reference = waiting.pop(0)
        name = reference.rpartition("/")[2]
        if name not in found:
            found.append(name)
            waiting += find_references(find_node(document, reference))
    return found


def _render_object(document: Node, name: str, node: Node) -> Iterator[str]:
    yield f"\n### {name}\n\n{join_lines(node['description'])}\n"
    if "enum" in node:
        yield f"\nOne of {describe_limits(node)}.\n"
        return
    yield from _render_fields(document, node, is_answer=name not in _list_asked(document))


def _list_asked(document: Node) -> set[str]:
    """Return the objects that requests are made of."""
    bodies = [operation.get("requestBody") for _, _, operation in list_operations(document)]
    return set(_list_reached(document, bodies))


def _render_fields(document: Node, node: Node, *, is_answer: bool) -> Iterator[str]:
    """Yield the table of an object's fields; those of an answer have no defaults, and null."""
    yield ANSWER_FIELDS if is_answer else FIELDS
    for name, one in node["properties"].items():
        is_required = name in node.get("required", ())
        default = "required" if is_required else describe_value(one)
        kind = describe_kind(one, shows_null=is_answer)
        cells = [kind, describe_limits(one), find_description(document, one)]
        yield _row(f"`{name}`", *(cells if is_answer else [kind, default, *cells[1:]]))


def find_description(document: Node, field: Node) -> str:
    """Return what is said of a field, or else of the object that it is."""
    if "description" not in field and "$ref" in field:
        field = find_node(document, field["$ref"])
    text: str = field.get("description", "")
    return join_lines(text)


def find_node(document: Node, reference: str) -> Node:
    """Return what a reference leads to."""
    node: Any = document
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    found: Node = node
    return found


# --- words


def make_anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    kept = "".join(one for one in heading.lower() if one.isalnum() or one in "_- ")
    return kept.replace(" ", "-")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def join_lines(text: str) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join(text.partition(_PARAGRAPH)[0].split())


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
