"""From tokens to the text of one choice: characters across tokens, stop strings, the end.

A token carries bytes, and a character may need the bytes of several tokens; so the text grows
by whole characters. A stop string is found as if the text came character by character: the
one that is complete first counts, wherever the borders of tokens lie.

    bytes --UTF-8, incremental--> characters --stop strings--> text
                                                  `-- held back: the beginning of a stop string
"""

from dataclasses import dataclass

from glinthawk.core.step import TokenLogprobs
from glinthawk.errors import InvariantBroken
from glinthawk.gateway.requests import ChoiceRequest
from glinthawk.models.tokenizer import IncrementalDetokenizer, Tokenizer
from glinthawk.scheduler import FinishReason


@dataclass(frozen=True)
class ChoiceResult:
    """A finished choice.

    text: without the prompt, cut before a stop string. tokens: all that count, the one that
    ended it included. offsets: for each of `tokens` the number of characters of `text` before
    it. logprobs: one for each of `tokens`, where asked.
    prompt_logprobs: by position of the prompt, where asked; the first is None.
    """

    index: int
    prompt_index: int
    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


@dataclass(frozen=True)
class TextDelta:
    """What a choice has grown by since its last delta.

    text: final characters; what may begin a stop string is held back. tokens: that were
    sampled meanwhile, whether their text is final yet or not; offsets and logprobs as in
    `ChoiceResult`. finish_reason: None while the choice goes on.
    """

    index: int
    prompt_index: int
    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] | None = None


class StopMatcher:
    """Finds the first complete stop string in a text that grows."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._keep = max((len(string) for string in stop), default=1) - 1
        self._tail = ""

    @property
    def num_held(self) -> int:
        """Characters at the end of the text that may begin a stop string."""
        for length in range(len(self._tail), 0, -1):
            suffix = self._tail[-length:]
            if any(len(string) > length and string.startswith(suffix) for string in self._stop):
                return length
        return 0

    def push(self, text: str, *, is_armed: bool = True) -> int | None:
        """Add `text`; return how many of the last characters, from where a stop string begins
        to the end of `text`, are to be cut off. None: no stop string is complete.

        A stop string that is complete while not armed is text like any other, and stays so.
        """
        if not self._stop or not text:
            return None
        window = self._tail + text
        first_end = len(self._tail) + 1
        self._tail = window[max(0, len(window) - self._keep) :]
        start = self._find(window, first_end) if is_armed else None
        return None if start is None else len(window) - start

    def _find(self, window: str, first_end: int) -> int | None:
        """Return where the match begins that ends first, at `first_end` or later."""
        best: tuple[int, int] | None = None
        for string in self._stop:
            start = window.find(string, max(0, first_end - len(string)))
            if start >= 0 and (best is None or (start + len(string), start) < best):
                best = (start + len(string), start)
        return None if best is None else best[1]


class TextAssembler:
    """Builds the text of one choice, token by token, and says when it is finished.

    As in vLLM, stop strings and stop tokens count only from the token after `min_tokens` on,
    so that at least min_tokens tokens stand before the one that ends the choice.
    """

    def __init__(self, choice: ChoiceRequest, stop: tuple[str, ...], tokenizer: Tokenizer) -> None:
        self._choice = choice
        self._decoder = IncrementalDetokenizer(tokenizer)
        self._matcher = StopMatcher(stop)
        self._pieces: list[str] = []
        self._num_characters = 0
        self._tokens: list[int] = []
        self._offsets: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason: FinishReason | None = None
        self._num_taken = 0
        self._num_tokens_taken = 0
        if choice.max_new_tokens == 0:
            self._finish_reason = FinishReason.LENGTH

    @property
    def num_tokens(self) -> int:
        """Tokens that count so far."""
        return len(self._tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the choice is finished; None while it is not."""
        return self._finish_reason

    def push(self, token: int, logprobs: TokenLogprobs | None = None) -> FinishReason | None:
        """Add a sampled token; return the finish reason once there is one.

        A token that comes after the end is thrown away: text runs a step behind sampling.
        """
        if self._finish_reason is not None:
            return self._finish_reason
        self._tokens.append(token)
        self._offsets.append(self._num_characters)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        sampling = self._choice.sampling
        is_armed = len(self._tokens) > sampling.min_tokens
        if is_armed and token in sampling.stop_token_ids:
            self._finish(FinishReason.STOP, is_armed=is_armed)
        elif self._add(self._decoder.push((token,)), is_armed=is_armed):
            self._finish_reason = FinishReason.STOP
        elif len(self._tokens) >= self._choice.max_new_tokens:
            self._finish(FinishReason.LENGTH, is_armed=is_armed)
        return self._finish_reason

    def take_delta(self) -> TextDelta:
        """Return what is new since the last call."""
        first, self._num_tokens_taken = self._num_tokens_taken, len(self._tokens)
        wants_logprobs = self._choice.sampling.num_logprobs is not None
        return TextDelta(
            index=self._choice.index,
            prompt_index=self._choice.prompt_index,
            text=self._take_text(),
            tokens=tuple(self._tokens[first:]),
            offsets=tuple(min(offset, self._num_characters) for offset in self._offsets[first:]),
            finish_reason=self._finish_reason,
            logprobs=tuple(self._logprobs[first:]) if wants_logprobs else None,
        )

    def _take_text(self) -> str:
        num_held = 0 if self._finish_reason is not None else self._matcher.num_held
        end = self._num_characters - num_held
        if end <= self._num_taken:
            return ""
        taken = self._join()[self._num_taken : end]
        self._num_taken = end
        return taken

    def build_result(
        self, prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    ) -> ChoiceResult:
        """Return the finished choice.

        Raises:
            InvariantBroken: it is not finished.
        """
        if self._finish_reason is None:
            raise InvariantBroken(f"choice {self._choice.index} is asked for before its end")
        wants_logprobs = self._choice.sampling.num_logprobs is not None
        return ChoiceResult(
            index=self._choice.index,
            prompt_index=self._choice.prompt_index,
            text=self._join(),
            tokens=tuple(self._tokens),
            offsets=tuple(min(offset, self._num_characters) for offset in self._offsets),
            finish_reason=self._finish_reason,
            logprobs=tuple(self._logprobs) if wants_logprobs else None,
            prompt_logprobs=prompt_logprobs,
        )

    def _finish(self, reason: FinishReason, *, is_armed: bool) -> None:
        """End without a stop string, unless the last characters complete one after all."""
        is_cut = self._add(self._decoder.finish(), is_armed=is_armed)
        self._finish_reason = FinishReason.STOP if is_cut else reason

    def _add(self, text: str, *, is_armed: bool) -> bool:
        """Add characters; return True if a stop string was complete and has been cut off."""
        if text:
            self._pieces.append(text)
            self._num_characters += len(text)
        num_cut = self._matcher.push(text, is_armed=is_armed)
        if num_cut is None:
            return False
        self._num_characters -= num_cut
        self._pieces = [self._join()[: self._num_characters]]
        return True

    def _join(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""
