"""What the engine remembers of a request while it is open."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import TokenLogprobs
from glinthawk.gateway.detokenize import ChoiceResult, TextAssembler, TextDelta
from glinthawk.gateway.requests import ChoiceRequest, ParsedRequest
from glinthawk.models.tokenizer import Tokenizer

Listener = Callable[[TextDelta], None]
"""Hears of a request's text as it grows; called in the engine's thread, must not block."""


class OpenRequest:
    """A request with its sequences, until every choice is finished."""

    def __init__(
        self,
        key: Hashable,
        parsed: ParsedRequest,
        tokenizer: Tokenizer,
        listener: Listener | None = None,
    ) -> None:
        self.key = key
        self._listener = listener
        self._told: set[int] = set()
        self.parsed = parsed
        self.sequences: dict[SequenceId, OpenSequence] = {}
        self.counted_prompts: set[int] = set()
        self._assemblers = {
            choice.index: TextAssembler(choice, parsed.stop, tokenizer) for choice in parsed.choices
        }
        self._unfinished = list(self._assemblers.values())
        self._unscored: list[OpenSequence] = []
        self._prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}

    def add(self, sequence: "OpenSequence") -> None:
        """Take a sequence that runs for a choice of this request."""
        self.sequences[sequence.identity] = sequence
        if sequence.choice.max_new_tokens == 0:
            self._unscored.append(sequence)

    def assembler(self, choice: ChoiceRequest) -> TextAssembler:
        """Return the text of one choice."""
        return self._assemblers[choice.index]

    def tell(self, sequence: "OpenSequence") -> None:
        """Let the listener hear what one choice has grown by."""
        choice = sequence.choice
        if self._listener is None or choice.max_new_tokens == 0 or choice.index in self._told:
            return
        delta = self.assembler(choice).take_delta()
        if delta.finish_reason is not None:
            self._told.add(choice.index)  # a token that was under way may still come
        self._listener(delta)

    def set_prompt_logprobs(self, prompt_index: int, position: int, value: TokenLogprobs) -> None:
        """Note the logprobs of a prompt's token; a prompt computed again overwrites itself."""
        if prompt_index not in self._prompt_logprobs:
            length = len(self.parsed.prompts[prompt_index].tokens)
            self._prompt_logprobs[prompt_index] = [None] * length
        self._prompt_logprobs[prompt_index][position] = value

    @property
    def is_finished(self) -> bool:
        """Whether every choice has its end, and every scored prompt its logprobs. What has them
        keeps them, so each is passed once, however often this is asked."""
        while self._unfinished and self._unfinished[-1].finish_reason is not None:
            self._unfinished.pop()
        while self._unscored and self._unscored[-1].is_scored:
            self._unscored.pop()
        return not self._unfinished and not self._unscored

    def build_results(self) -> tuple[ChoiceResult, ...]:
        """Return all choices, finished, in the order of their index."""
        return tuple(
            self._assemblers[choice.index].build_result(self._scored_prompt(choice))
            for choice in self.parsed.choices
        )

    def _scored_prompt(self, choice: ChoiceRequest) -> tuple[TokenLogprobs | None, ...] | None:
        if choice.sampling.num_prompt_logprobs is None:
            return None
        # A prompt of one token has no token that another one predicts.
        return tuple(self._prompt_logprobs.get(choice.prompt_index, [None]))


@dataclass
class OpenSequence:
    """A sequence that runs, and the choice that it becomes.

    num_failures: steps of it that failed, not counting lost machines. is_scored: a sequence
    that generates nothing has its prompt's logprobs.
    """

    identity: SequenceId
    request: OpenRequest
    choice: ChoiceRequest
    num_generated: int = 0
    num_failures: int = 0
    is_scored: bool = False

    @property
    def assembler(self) -> TextAssembler:
        """The text so far."""
        return self.request.assembler(self.choice)

    def push(self, token: int, logprobs: TokenLogprobs | None) -> bool:
        """Take a token; return whether the sequence has nothing more to do."""
        if self.choice.max_new_tokens == 0:
            self.is_scored = True
            return True
        return self.assembler.push(token, logprobs) is not None

    def is_ended_by(self, token: int) -> bool:
        """Say whether `token`, were it the next one, ends the sequence by its id."""
        sampling = self.choice.sampling
        return self.num_generated >= sampling.min_tokens and token in sampling.stop_token_ids
