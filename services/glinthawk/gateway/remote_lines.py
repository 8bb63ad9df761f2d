"""Lines of a batch's files at a gateway, in the form that the batch command writes. Pure.

They are the same but for lines that the end of a batch overtook: OpenAI has no response for
these, the batch command gives every line one, with the error in its body.
"""

import json
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from glinthawk.errors import InvariantBroken, PeerUnavailable
from glinthawk.gateway.bodies import encode_json_line

_UNANSWERED = HTTPStatus.SERVICE_UNAVAILABLE


def split_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield whole lines, each with its line end.

    Raises:
        PeerUnavailable: the last one is torn, so the file is not whole.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        raise PeerUnavailable(
            f"the gateway's file ends within a line ({len(rest)} bytes); run the same command again"
        )


def normalize_line(line: bytes) -> bytes:
    """Return an output line that has a response, whatever became of its request.

    Raises:
        InvariantBroken: it is no output line.
    """
    try:
        document: Any = json.loads(line)
        if document["response"] is not None:
            return line
        message, code = document["error"]["message"], document["error"]["code"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvariantBroken(
            f"the gateway's file has a line that is no answer: {line[:80]!r}"
        ) from error
    body = {"message": message, "type": "server_error", "param": None, "code": code}
    response = {"status_code": int(_UNANSWERED), "request_id": None, "body": {"error": body}}
    return encode_json_line({**document, "response": response, "error": None})
