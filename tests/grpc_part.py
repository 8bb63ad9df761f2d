"""The part of the API reference that is about gRPC, from the comments in gateway.proto."""

import importlib.resources
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from glinthawk import errors
from glinthawk.gateway.bodies import build_error_body
from glinthawk.wire.failures import status_of
from glinthawk.wire.proto import generate

SOURCE = "glinthawk/wire/proto/gateway.proto"
_MESSAGES, _SERVICES = 4, 6
_FIELDS, _METHODS = 2, 2
"""Numbers in a descriptor's paths, of descriptor.proto."""

SHOWN_ERRORS = (
    errors.InvalidRequest,
    errors.Unauthenticated,
    errors.NotFound,
    errors.CapacityExceeded,
    errors.PeerUnavailable,
    errors.StoreUnavailable,
    errors.InvariantBroken,
)
"""Those that callers of the gateway's services meet."""

HEAD = """
## gRPC

At `--listen`, with reflection and `grpc.health.v1`, in `glinthawk/wire/proto/gateway.proto`.
"""
CALLS = "\n| call | takes | returns | what it does |\n| --- | --- | --- | --- |\n"
FIELDS = "\n| field | type | meaning |\n| --- | --- | --- |\n"
ERRORS = """
### gRPC errors

| status | over HTTP | when |
| --- | --- | --- |
"""

Comments = dict[tuple[int, ...], str]


def render_grpc() -> Iterator[str]:
    """Yield the part: services, messages and errors."""
    file = read_descriptor()
    comments = read_comments(file)
    yield HEAD
    for index, service in enumerate(file.service):
        yield from _render_service(file.package, service, index, comments)
    yield ERRORS
    for kind in SHOWN_ERRORS:
        status = status_of(kind("any"))[1].name
        http, _ = build_error_body(kind("any"))
        yield f"| `{status}` | {http} | {(kind.__doc__ or '').splitlines()[0]} |\n"
    for index, message in enumerate(file.message_type):
        yield from _render_message(message, index, comments)


def read_descriptor() -> FileDescriptorProto:
    """Return what the compiler reads in gateway.proto, comments included."""
    from grpc_tools import protoc

    root = Path(generate.__file__).parents[3]
    bundled = str(importlib.resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "gateway.bin"
        arguments = [f"-I{root}", f"-I{bundled}", "--include_source_info"]
        status = protoc.main(["protoc", *arguments, f"--descriptor_set_out={output}", SOURCE])
        assert status == 0, "the compiler has said why on stderr"
        (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
    return file


def read_comments(file: FileDescriptorProto) -> Comments:
    """Return the comment before each thing that has one, by its path in the descriptor."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments
    }


def _render_service(
    package: str, service: ServiceDescriptorProto, index: int, comments: Comments
) -> Iterator[str]:
    yield f"\n### {package}.{service.name}\n\n{comments[_SERVICES, index]}\n{CALLS}"
    for place, method in enumerate(service.method):
        reply = _link(method.output_type)
        reply = f"stream of {reply}" if method.server_streaming else reply
        text = comments[_SERVICES, index, _METHODS, place]
        yield f"| `{method.name}` | {_link(method.input_type)} | {reply} | {text} |\n"


def _render_message(message: DescriptorProto, index: int, comments: Comments) -> Iterator[str]:
    yield f"\n### {message.name}\n\n{comments[_MESSAGES, index]}\n"
    if message.field:
        yield FIELDS
    entries = {one.name: one for one in message.nested_type if one.options.map_entry}
    for place, field in enumerate(message.field):
        text = comments[_MESSAGES, index, _FIELDS, place]
        yield f"| `{field.name}` | {_describe_type(message, field, entries)} | {text} |\n"


def _describe_type(
    message: DescriptorProto, field: FieldDescriptorProto, entries: dict[str, DescriptorProto]
) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_name_type(key)} to {_name_type(value)}"
    kind = _name_type(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    if field.HasField("oneof_index"):
        if field.proto3_optional:
            return f"{kind}, optional"
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def _name_type(field: FieldDescriptorProto) -> str:
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    """Return a link to a message."""
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"
