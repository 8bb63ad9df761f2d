from typing import Any

from glinthawk.bench.tally import NEAR_TIE, Answer, Tally, compare, is_changed, read_answers

CLEAR, TIED = {"a": -0.1, "b": -0.1 - 2 * NEAR_TIE}, {"a": -0.1, "b": -0.1 - NEAR_TIE / 2}


def line(custom_id: str, *tokens: int, tops: list[dict[str, float]] | None = None) -> Any:
    logprobs = {"top_logprobs": tops or [CLEAR] * len(tokens)}
    body = {"choices": [{"token_ids": list(tokens), "logprobs": logprobs}]}
    response = {"status_code": 200, "body": body}
    return {"custom_id": custom_id, "response": response, "error": None}


def failed(custom_id: str) -> Any:
    response = {"status_code": 503, "body": {"error": {"message": "away"}}}
    return {"custom_id": custom_id, "response": response, "error": None}


def expired(custom_id: str) -> Any:
    return {"custom_id": custom_id, "response": None, "error": {"code": "batch_expired"}}


UNDISTURBED = read_answers([line("a", 1, 2, 3), line("b", 4, 5)])


def test_the_same_lines_in_another_order_are_no_loss() -> None:
    assert compare([line("b", 4, 5), line("a", 1, 2, 3)], "ab", UNDISTURBED) == Tally()


def test_each_kind_of_harm_is_counted_by_itself() -> None:
    good = line("b", 4, 5)
    assert compare([good], "ab", UNDISTURBED) == Tally(lost=1)
    assert compare([line("a", 1, 2, 3), good, good], "ab", UNDISTURBED) == Tally(doubled=1)
    assert compare([line("a", 1, 2, 9), good], "ab", UNDISTURBED) == Tally(changed=1)
    assert compare([failed("a"), good], "ab", UNDISTURBED) == Tally(failed=1)
    assert compare([expired("a"), good], "ab", UNDISTURBED) == Tally(failed=1)


def test_tallies_of_rounds_add_up() -> None:
    assert Tally(1, 2, 3, 4) + Tally(10, 20, 30, 40) == Tally(11, 22, 33, 44)


def test_texts_are_compared_up_to_the_first_near_tie() -> None:
    ours = Answer((1, 2, 3, 4), (1.0, 1.0, NEAR_TIE / 2, 1.0))
    assert ours.num_certain == 2
    assert not is_changed(Answer((1, 2, 9, 9), ()), ours)
    assert is_changed(Answer((1, 9, 3, 4), ()), ours)
    assert is_changed(Answer((1,), ()), ours)


def test_a_text_without_ties_must_have_its_length() -> None:
    ours = Answer((1, 2), (1.0, 1.0))
    assert is_changed(Answer((1, 2, 3), ()), ours)
    assert is_changed(Answer((1,), ()), ours)


def test_gaps_are_read_from_the_best_two_and_shared_texts_are_ties() -> None:
    read = read_answers([line("a", 1, 2, 3, tops=[CLEAR, TIED, {"a": -0.1}])])
    assert read["a"].num_certain == 1
    assert read["a"].gaps[2] == 0.0
