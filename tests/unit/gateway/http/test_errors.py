"""Every error of the tree has OpenAI's shape; a defect shows nothing of what a caller wrote."""

import io
import json

import httpx
import pytest
from fastapi import FastAPI

from glinthawk import errors
from glinthawk.gateway.http.errors import Boundary, JsonAnswer, add_error_handlers, build_error
from glinthawk.telemetry.logging import configure_logging
from unit.gateway.http.asgi import call


def tree() -> list[type[errors.GlinthawkError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.GlinthawkError)]


DOCUMENTED = {
    errors.InvalidRequest: 400,
    errors.UnsupportedModel: 400,
    errors.Unauthenticated: 401,
    errors.NotFound: 404,
    errors.CapacityExceeded: 429,
    errors.PeerUnavailable: 503,
    errors.StoreUnavailable: 503,
}


@pytest.mark.parametrize("kind", tree())
def test_every_error_has_its_documented_status_and_shape(
    kind: type[errors.GlinthawkError],
) -> None:
    status, body = build_error(kind("what"))
    assert status == DOCUMENTED.get(kind, 500)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == "what"
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)


def make_app(error: Exception) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(Boundary)

    @app.get("/fail/{word}")
    async def fail(word: str) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (errors.CapacityExceeded("full"), "retry-after", "1"),
        (errors.StoreUnavailable("locked"), "retry-after", "1"),
        (errors.Unauthenticated("who"), "www-authenticate", "Bearer"),
    ],
)
def test_headers_say_when_to_come_again_and_how(
    error: errors.GlinthawkError, header: str, value: str
) -> None:
    assert call(make_app(error), "GET", "/fail/x").headers[header] == value


def test_a_defect_is_a_500_without_its_text_here_or_in_the_log() -> None:
    log = io.StringIO()
    configure_logging("info", "json", role="gateway", name="g", stream=log)
    answer = call(make_app(RuntimeError("secret prompt")), "GET", "/fail/secret-word")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    line = json.loads(log.getvalue())
    assert (line["event"], line["error"]) == ("http_call_failed", "RuntimeError")
    assert line["route"] == "/fail/{word}"
    assert line["request_id"] == answer.headers["x-request-id"]
    assert any("test_errors.py" in frame for frame in line["where"])
    for text in (answer.text, log.getvalue()):
        assert "secret" not in text


def test_text_that_utf8_cannot_carry_is_escaped() -> None:
    answer = JsonAnswer({"error": "half \ud800"})
    assert json.loads(bytes(answer.body)) == {"error": "half \ud800"}


def test_a_route_that_is_not_there_is_a_404_of_the_same_shape() -> None:
    answer: httpx.Response = call(make_app(RuntimeError()), "GET", "/none")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
    assert "GET '/none'" in answer.json()["error"]["message"]
