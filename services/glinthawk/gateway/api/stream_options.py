"""The fields about streaming, which are no part of what is generated."""

from dataclasses import dataclass
from typing import Any

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import Fields, shown


@dataclass(frozen=True)
class StreamOptions:
    """How a caller wants a stream. include_usage: a last chunk that counts the tokens."""

    include_usage: bool = False


def take_stream_options(body: dict[str, Any]) -> StreamOptions | None:
    """Take the fields about streaming off `body`; None: the answer is wanted whole.

    They are no part of what is generated, so that who checks the rest need not know them.

    Raises:
        InvalidRequest: one has the wrong type or is not supported; param names it.
    """
    is_streamed = Fields(body).boolean("stream")
    options = body.pop("stream_options", None)
    body.pop("stream", None)
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest(
            f"stream_options must be an object, not {shown(options)}", param="stream_options"
        )
    if options is not None and not is_streamed:
        raise InvalidRequest("stream_options go with stream: true", param="stream_options")
    fields = Fields(options or {})
    for name, value in (options or {}).items():
        is_neutral = name == "include_obfuscation" and value in (None, False)
        if name != "include_usage" and not is_neutral:
            raise InvalidRequest(
                f"stream_options.{shown(name)} {shown(value)} is not supported; leave it out",
                param="stream_options",
            )
    return StreamOptions(fields.boolean("include_usage")) if is_streamed else None
