"""The service does what /openapi.json says, for requests that a generator makes from it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from unit.gateway.http.serving import KnownKeys, serve

HEADERS = {"Authorization": "Bearer k"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    keys = KnownKeys({"k": "alice"})
    with serve(tmp_path_factory.mktemp("data"), keys=keys) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation_keeps_to_the_document(case: Any) -> None:
    is_positive = case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
    if is_positive and isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"  # else nearly every request ends at an unknown model
    # What the document cannot say is refused too: fields that would change nothing are listed
    # nowhere, and those that would change the answer are refused by name.
    case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance])
