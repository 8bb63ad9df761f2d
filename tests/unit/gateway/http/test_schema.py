"""The service does what /openapi.json says, for requests that a generator makes from it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from glinthawk.gateway.api.batches import FIELDS
from glinthawk.gateway.api.stream_options import take_stream_options
from glinthawk.gateway.http.schemas_jobs import BatchRequest
from glinthawk.gateway.http.schemas_requests import ChatCompletionRequest, CompletionRequest
from glinthawk.gateway.neutral_fields import CHAT_FIELDS, COMPLETION_FIELDS
from glinthawk.gateway.requests import Endpoint, parse_body
from unit.gateway.factories import make_model
from unit.gateway.http.serving import serve

HEADERS = {"Authorization": "Bearer k"}
WITHOUT_INPUT = (
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
)
WITH_ID = (
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/batches/{batch_id}"),
    ("POST", "/v1/batches/{batch_id}/cancel"),
)
WITH_FIELDS = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
)
GOOD, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    *((*operation, GOOD, 1) for operation in WITHOUT_INPUT),
    *((*operation, GOOD, 8) for operation in WITH_ID),
    *((*operation, mode, 25) for operation in WITH_FIELDS for mode in (GOOD, WRONG)),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    keys = {"k": "alice"}
    with serve(tmp_path_factory.mktemp("data"), keys=keys) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


@pytest.mark.parametrize(
    ("endpoint", "model", "least", "acted_upon"),
    [
        (
            Endpoint.CHAT,
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": "hi"}]},
            CHAT_FIELDS,
        ),
        (Endpoint.COMPLETIONS, CompletionRequest, {"prompt": "hi"}, COMPLETION_FIELDS),
    ],
)
def test_described_fields_and_defaults_are_those_that_are_read(
    endpoint: Endpoint,
    model: type[ChatCompletionRequest | CompletionRequest],
    least: dict[str, Any],
    acted_upon: frozenset[str],
) -> None:
    fields = model.model_fields
    assert set(fields) == acted_upon | {"stream", "stream_options"}
    defaults = {
        name: field.default
        for name, field in fields.items()
        if not field.is_required() and field.default is not None
    }
    assert len(defaults) > 10
    full = {**defaults, **least}
    assert take_stream_options(full) is None
    requests = [parse_body(endpoint, body, make_model(), default_seed=7) for body in (least, full)]
    assert requests[0] == requests[1]


def test_described_fields_of_a_batch_are_those_that_are_taken() -> None:
    assert set(BatchRequest.model_fields) == FIELDS


def test_every_operation_of_the_document_is_tried(api: Any) -> None:
    described = {
        (method.upper(), path)
        for path, methods in api.raw_schema["paths"].items()
        for method in methods
    }
    assert described == {*WITHOUT_INPUT, *WITH_ID, *WITH_FIELDS}


@pytest.mark.parametrize(("method", "path", "mode", "num_examples"), CASES)
def test_an_operation_keeps_to_the_document(
    api: Any, method: str, path: str, mode: GenerationMode, num_examples: int
) -> None:
    @given(case=api[path][method].as_strategy(mode))
    @settings(
        max_examples=num_examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        if mode is GOOD and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"  # else nearly every request ends at an unknown model
        # What the document cannot say is refused too: a limit that does not fit the prompt, or
        # a field that is listed nowhere and would change the answer. Parameters of a query that
        # nobody knows are passed over, as everywhere in HTTP.
        excluded = [positive_data_acceptance]
        if method == "GET":
            excluded.append(negative_data_rejection)
        case.call_and_validate(headers=HEADERS, excluded_checks=excluded)

    check()
