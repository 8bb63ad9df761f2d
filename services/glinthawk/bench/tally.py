"""Compares what a disturbed run gave with what an undisturbed one gives. Pure.

Greedy texts must be equal up to the first token whose two best candidates the undisturbed run
has closer together than float32 sums of another batch shape differ.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Any

NEAR_TIE = 2e-4
"""Gap of the two best log-probabilities below which either may win."""


@dataclass(frozen=True)
class Answer:
    """A greedy text. gaps: of the two best candidates for each token."""

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]

    @property
    def num_certain(self) -> int:
        """How many first tokens are the same in every run."""
        certain = itertools.takewhile(lambda gap: gap >= NEAR_TIE, self.gaps)
        return len(list(certain))


@dataclass(frozen=True)
class Tally:
    """What went wrong. lost: without a line. doubled: with more than one. failed: with an error
    for a line. changed: with another text than undisturbed."""

    lost: int = 0
    doubled: int = 0
    failed: int = 0
    changed: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        names = [field.name for field in fields(Tally)]
        return Tally(*(getattr(self, name) + getattr(other, name) for name in names))


def read_answers(lines: Iterable[Mapping[str, Any]]) -> dict[str, Answer]:
    """Return the answers of a batch's output lines (with token_ids and two logprobs) by
    custom_id; lines with errors have none."""
    good = [line for line in lines if _is_good(line)]
    return {line["custom_id"]: _read_answer(line["response"]["body"]) for line in good}


def compare(
    lines: Sequence[Mapping[str, Any]], custom_ids: Iterable[str], undisturbed: Mapping[str, Answer]
) -> Tally:
    """Compare the output and error lines of a batch of `custom_ids` with the undisturbed run."""
    counts = Counter(line["custom_id"] for line in lines)
    answers = read_answers(lines)
    return Tally(
        lost=sum(counts[custom_id] == 0 for custom_id in custom_ids),
        doubled=sum(count > 1 for count in counts.values()),
        failed=sum(not _is_good(line) for line in lines),
        changed=sum(is_changed(answers[name], undisturbed[name]) for name in answers),
    )


def is_changed(answer: Answer, undisturbed: Answer) -> bool:
    """Whether a text differs where it may not."""
    certain = undisturbed.num_certain
    is_whole = certain == len(undisturbed.tokens)
    if is_whole and len(answer.tokens) != certain:
        return True
    return answer.tokens[:certain] != undisturbed.tokens[:certain]


def _is_good(line: Mapping[str, Any]) -> bool:
    response = line["response"]
    return (
        line["error"] is None and response is not None and response["status_code"] == HTTPStatus.OK
    )


def _read_answer(body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    tops = choice["logprobs"]["top_logprobs"]
    return Answer(tuple(choice["token_ids"]), tuple(_gap(top) for top in tops))


def _gap(top: Mapping[str, float]) -> float:
    """Return the gap of the two best; 0, which is a tie, where two share their text."""
    best = sorted(top.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 0.0
