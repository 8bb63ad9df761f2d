import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk.errors import InvariantBroken
from glinthawk.gateway.detokenize import (
    ChoiceResult,
    FinishReason,
    StopMatcher,
    TextAssembler,
)
from unit.gateway.factories import END, START, ByteTokenizer, make_choice, make_logprobs


def run(tokens: list[int], *stop: str, **choice: object) -> ChoiceResult:
    """Push tokens until the choice is finished; all of them if need be."""
    assembler = TextAssembler(make_choice(**choice), stop, ByteTokenizer())  # type: ignore[arg-type]
    for token in tokens:
        assembler.push(token)
    return assembler.build_result()


def assembler_of(*stop: str, **choice: object) -> TextAssembler:
    return TextAssembler(make_choice(**choice), stop, ByteTokenizer())  # type: ignore[arg-type]


def test_an_end_token_counts_but_is_no_text() -> None:
    result = run([*b"hi", END])
    assert result.text == "hi"
    assert result.tokens == (*b"hi", END)
    assert result.finish_reason is FinishReason.STOP
    assert result.offsets == (0, 1, 2)


def test_a_stop_token_that_is_text_is_left_out_of_the_text() -> None:
    assert run([*b"hi!"], stop_token_ids=frozenset({ord("!")})).text == "hi"


def test_the_limit_ends_a_choice() -> None:
    result = run([*b"hello"], max_new_tokens=5)
    assert (result.text, result.finish_reason) == ("hello", FinishReason.LENGTH)


def test_an_end_at_the_limit_is_a_stop() -> None:
    assert run([*b"hi", END], max_new_tokens=3).finish_reason is FinishReason.STOP
    assert run([*b"hi"], "i", max_new_tokens=2).finish_reason is FinishReason.STOP


def test_tokens_after_the_end_are_thrown_away() -> None:
    result = run([*b"ab", END, *b"cd"])
    assert (result.text, result.tokens) == ("ab", (*b"ab", END))


def test_a_choice_of_no_tokens_is_finished_at_once() -> None:
    assembler = assembler_of(max_new_tokens=0)
    assert assembler.finish_reason is FinishReason.LENGTH
    assert assembler.push(65) is FinishReason.LENGTH
    assert assembler.build_result().tokens == ()


def test_a_result_before_the_end_is_a_defect() -> None:
    with pytest.raises(InvariantBroken):
        assembler_of().build_result()


def test_a_stop_string_is_found_across_token_borders() -> None:
    result = run([*b"one END two"], "END")
    assert result.text == "one "
    assert result.tokens == tuple(b"one END")
    assert result.finish_reason is FinishReason.STOP


def test_a_stop_string_may_end_within_a_token() -> None:
    # Token 259 is "llo": the stop string is complete at its first character.
    result = run([ord("e"), ord("l"), 259], "ell")
    assert (result.text, result.tokens) == ("", (ord("e"), ord("l"), 259))


def test_offsets_never_lie_behind_the_text() -> None:
    result = run([*b"abcd"], "bcd")
    assert (result.text, result.offsets) == ("a", (0, 1, 1, 1))


def test_of_two_stop_strings_the_one_complete_first_counts() -> None:
    # In one token or in four: "l" is complete before "llo".
    assert run([258, 259], "llo", "l").text == "he"
    assert run([*b"hello"], "ello", "l").text == "he"
    assert run([*b"xab"], "ab", "xab").text == ""


def test_stop_strings_count_only_after_min_tokens() -> None:
    assert run([*b"a.b.c."], ".", min_tokens=3).text == "a.b"
    # The stop string began before and is complete after.
    assert run([*b"abcd"], "bc", min_tokens=2).text == "a"
    assert run([*b"abcbc"], "bc", min_tokens=3).text == "abc"


def test_end_tokens_count_only_after_min_tokens() -> None:
    result = run([END, ord("a"), END], min_tokens=1)
    assert result.tokens == (END, ord("a"), END)
    assert result.text == "a"


def test_characters_of_several_tokens_come_whole() -> None:
    assembler = assembler_of()
    euro = "\u20ac".encode()
    taken = []
    for token in (*euro, ord("!")):
        assembler.push(token)
        taken.append(assembler.take_delta().text)
    assert taken == ["", "", "\u20ac", "!"]


def test_a_character_cut_by_the_limit_shows_that_something_is_missing() -> None:
    assert run([ord("a"), 0xE2, 0x82], max_new_tokens=3).text == "a\ufffd"


def test_a_broken_character_is_replaced_as_utf8_says() -> None:
    assert run([0xE2, ord("a"), END]).text == "\ufffda"


def test_marks_of_the_model_are_no_text() -> None:
    assert run([ord("a"), START, ord("b"), END], "<start>").text == "ab"


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assembler = assembler_of("END")
    taken = []
    for token in b"aENb":
        assembler.push(token)
        taken.append(assembler.take_delta().text)
    assert taken == ["a", "", "", "ENb"]


def test_held_text_is_given_out_at_the_end() -> None:
    assembler = assembler_of("END", max_new_tokens=3)
    for token in b"aEN":
        assembler.push(token)
    assert assembler.take_delta().text == "aEN"
    assert assembler.take_delta().text == ""


def test_logprobs_stand_for_each_token_that_counts() -> None:
    assembler = assembler_of(num_logprobs=1)
    for token in (*b"ab", END, *b"c"):
        assembler.push(token, make_logprobs(token, 1))
    result = assembler.build_result((None,))
    assert result.logprobs == tuple(make_logprobs(token, 1) for token in (*b"ab", END))
    assert result.prompt_logprobs == (None,)
    assert assembler.num_tokens == 3


def test_without_logprobs_there_are_none() -> None:
    assert run([END]).logprobs is None


def expected_cut(text: str, stop: list[str]) -> str | None:
    """Add one character after the other; cut where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(one) for one in stop if text[:end].endswith(one)]
        if starts:
            return text[: min(starts)]
    return None


@given(
    pieces=st.lists(st.text("abc", min_size=1, max_size=4), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_divided(
    pieces: list[str], stop: list[str]
) -> None:
    matcher = StopMatcher(tuple(stop))
    text = ""
    for piece in pieces:
        text += piece
        num_cut = matcher.push(piece)
        if num_cut is not None:
            assert text[: len(text) - num_cut] == expected_cut(text, stop)
            return
        held = text[len(text) - matcher.num_held :]
        assert any(one.startswith(held) for one in stop)
    assert expected_cut(text, stop) is None


@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_that_was_given_out_is_never_taken_back(text: str, stop: list[str]) -> None:
    assembler = assembler_of(*stop)
    given_out = ""
    for token in [*text.encode(), END]:
        assembler.push(token)
        given_out += assembler.take_delta().text
    assert given_out == assembler.build_result().text
