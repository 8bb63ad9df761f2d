"""A request of many choices: its end is found without looking at all of them again and again."""

import pytest

from glinthawk.core.ids import SequenceId
from glinthawk.gateway.conversation import OpenRequest, OpenSequence
from glinthawk.gateway.detokenize import FinishReason, TextAssembler
from glinthawk.gateway.requests import Endpoint, parse_body
from unit.gateway.factories import END, ByteTokenizer, make_model

NUM_PROMPTS = 400


def open_request(**body: object) -> OpenRequest:
    body = {"prompt": ["ab"] * NUM_PROMPTS, "max_tokens": 3} | body
    parsed = parse_body(Endpoint.COMPLETIONS, body, make_model(), default_seed=1)
    request = OpenRequest("key", parsed, ByteTokenizer())
    for index in range(len(parsed.prompts)):
        for choice in parsed.choices_of(index):
            request.add(OpenSequence(SequenceId(choice.index + 1), request, choice))
    return request


@pytest.mark.parametrize("step", [1, -1])
def test_each_choice_is_looked_at_a_few_times_and_not_at_every_end(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    looks = 0

    def look(assembler: TextAssembler) -> FinishReason | None:
        nonlocal looks
        looks += 1
        return assembler._finish_reason

    request = open_request()
    monkeypatch.setattr(TextAssembler, "finish_reason", property(look))
    for sequence in list(request.sequences.values())[::step]:
        assert not request.is_finished
        assert sequence.push(END, None)
    assert request.is_finished
    assert looks <= 5 * NUM_PROMPTS


def test_a_prompt_that_is_only_scored_is_waited_for() -> None:
    request = open_request(echo=True, logprobs=1, max_tokens=0)
    for sequence in request.sequences.values():
        assert not request.is_finished
        assert sequence.push(END, None)
    assert request.is_finished
