"""HTTP/1.1 as uvicorn speaks it, but for what it says of bytes that are no HTTP: that has the shape
of every other error.
"""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.bodies import build_error_body, encode_json_line


class Protocol(H11Protocol):
    """One connection."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, and close the connection. msg: uvicorn's, for people."""
        what = "the call is no HTTP/1.1 that can be read; check its first line and its headers"
        status, document = build_error_body(InvalidRequest(what))
        body = encode_json_line(document)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer
            return
        is_head = self.scope is not None and self.scope.get("method") == "HEAD"
        answer = (
            h11.Response(status_code=status, headers=headers),
            *(() if is_head else (h11.Data(data=body),)),
            h11.EndOfMessage(),
        )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever still answers this call is not heard
            self.cycle.message_event.set()
        for event in answer:
            self.transport.write(self.conn.send(event))
        self.transport.close()
