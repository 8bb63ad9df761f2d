from pathlib import Path

from glinthawk.gateway.batch_input import read_input
from glinthawk.gateway.requests import BatchLine, Endpoint, parse_request
from unit.gateway.factories import make_model

EXAMPLES = Path(__file__).parents[3] / "examples" / "prompts.jsonl"


def test_every_example_is_a_request_and_both_endpoints_are_shown() -> None:
    lines = list(read_input(EXAMPLES))
    assert len(lines) >= 64
    endpoints = set()
    for line in lines:
        assert isinstance(line, BatchLine), line
        request = parse_request(line, make_model(2048), run_seed=0)
        assert all(48 <= choice.max_new_tokens <= 64 for choice in request.choices)
        endpoints.add(request.endpoint)
    assert endpoints == set(Endpoint)
