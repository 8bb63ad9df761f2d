import random
from collections import Counter

import pytest

from glinthawk.errors import InvariantBroken
from glinthawk.stage.history import TokenHistory


def counts_of(history: TokenHistory) -> dict[int, int]:
    return dict(zip(history.ids.tolist(), map(int, history.outputs.tolist()), strict=True))


def expected_counts(prompt: list[int], output: list[int]) -> dict[int, int]:
    return dict.fromkeys(prompt, 0) | dict(Counter(output))


def test_counts_follow_any_sequence_of_appends_and_rewinds() -> None:
    random.seed(0)
    prompt, output = [5, 5, 900, 3], [7, 3]
    history = TokenHistory([*prompt, *output], len(prompt))
    for _ in range(500):
        if random.random() < 0.05:
            del output[random.randint(0, len(output)) :]
            history.rewind(len(prompt) + len(output))
        token = random.randrange(400)
        history.append(token)
        output.append(token)
        assert counts_of(history) == expected_counts(prompt, output)


def test_a_rewind_beyond_what_is_known_or_into_the_prompt_is_refused() -> None:
    history = TokenHistory([1, 2, 3], 2)
    history.rewind(3)
    for length in (4, 1):
        with pytest.raises(InvariantBroken, match=f"position {length} of a sequence that has 3"):
            history.rewind(length)
