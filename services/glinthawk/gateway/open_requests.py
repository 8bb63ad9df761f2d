"""The requests that the engine has open: their sequences in the scheduler, and their text.

    open   -> groups of sequences
    commit -> tokens that count
    read   -> text, and the ends of choices; a request with all its choices is finished

The engine plans between `commit` and `read`. Nothing here knows workers.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import SampledToken, SequenceStart, StepPlan, StepResult
from glinthawk.errors import GlinthawkError, InvalidRequest, InvariantBroken
from glinthawk.gateway.conversation import OpenRequest, OpenSequence
from glinthawk.gateway.events import Submit
from glinthawk.models.tokenizer import Tokenizer
from glinthawk.scheduler import FinishReason, Flow, Scheduler, SequenceGroup
from glinthawk.telemetry.metrics import ServiceMetrics

MOST_FAILURES = 3
"""Failed steps, not counting lost machines, after which a sequence is given up."""


@dataclass
class Totals:
    """Counts since the beginning."""

    tokens_in: int = 0
    tokens_out: int = 0
    steps: int = 0


class OpenRequests:
    """All open requests; the engine's thread owns it.

    on_end: called once with each request that ends by itself, and with the error if one ended it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        on_end: Callable[[OpenRequest, GlinthawkError | None], None],
        metrics: ServiceMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._on_end = on_end
        self._metrics = metrics
        self._requests: dict[Hashable, OpenRequest] = {}
        self._sequences: dict[SequenceId, OpenSequence] = {}
        self._next_sequence = 1
        self.totals = Totals()

    def open(self, event: Submit) -> None:
        """Queue the sequences of a request; one that can never run ends with the reason."""
        key, parsed = event.key, event.request
        request = OpenRequest(key, parsed, self._tokenizer, event.listener)
        self._requests[key] = request
        self._metrics.requests.inc()
        try:
            for prompt_index in range(len(parsed.prompts)):
                self._add_group(request, prompt_index, event.flow)
        except GlinthawkError as error:
            self._finish(request, error)
            return
        if request.is_finished:
            self._finish(request)

    def commit(self, result: StepResult) -> list[SampledToken]:
        """Book a step's tokens; return those that count, for their text to be read later."""
        stopped = {
            sample.sequence: FinishReason.STOP if sample.error is None else FinishReason.ERROR
            for sample in result.sampled
            if (sequence := self._sequences.get(sample.sequence)) is not None
            and (sample.error is not None or sequence.is_ended_by(sample.token))
        }
        committed = self._scheduler.commit(result, stopped)
        if committed is None:
            return []
        self.totals.steps += 1
        self._metrics.steps.inc()
        self._metrics.recomputed_tokens.inc(committed.recomputed_tokens)
        if result.sampled:
            self._metrics.lane_rows.observe(len(result.sampled))
        for identity, position, logprobs in result.prompt_logprobs:
            sequence = self._sequences.get(identity)
            if sequence is not None:
                sequence.request.set_prompt_logprobs(
                    sequence.choice.prompt_index, position, logprobs
                )
        # A failed row has no token that counts, but its request must be told.
        accepted = [
            item
            for item in result.sampled
            if item.sequence in self._sequences
            and (item.error is not None or item.sequence in committed.accepted)
        ]
        for sample in accepted:
            self._sequences[sample.sequence].num_generated += 1
        return accepted

    def read(self, sampled: Iterable[SampledToken]) -> None:
        """Read the text of tokens that count, and end what has ended by it."""
        aborted: list[SequenceId] = []
        for sample in sampled:
            sequence = self._sequences.get(sample.sequence)
            if sequence is None:
                continue
            request = sequence.request
            if sample.error is not None:
                self._finish(request, InvariantBroken(sample.error))
                continue
            self._count(request, sequence)
            is_ended = sequence.push(sample.token, sample.logprobs)
            request.tell(sequence)
            if not is_ended:
                continue
            aborted.append(sample.sequence)
            if request.is_finished:
                self._finish(request)
        self._scheduler.abort(aborted)

    def blame(self, plan: StepPlan, error: GlinthawkError) -> None:
        """Count a failure for each sequence of a step, and end those that had too many."""
        for identity in plan.sequences.tolist():
            sequence = self._sequences.get(SequenceId(identity))
            if sequence is None:
                continue
            sequence.num_failures += 1
            if sequence.num_failures >= MOST_FAILURES:
                reason = f"given up after {sequence.num_failures} failed steps, the last: {error}"
                self._finish(sequence.request, InvariantBroken(reason))

    def end_oversized(self) -> None:
        """End the requests that no worker could hold any more, of those that there are or were."""
        for request in list(self._requests.values()):
            try:
                for sequence in request.sequences.values():
                    choice = sequence.choice
                    prompt = request.parsed.prompts[choice.prompt_index]
                    self._scheduler.check_size(len(prompt.tokens), choice.max_new_tokens)
            except InvalidRequest as error:
                self._finish(request, error)

    def close(self, key: Hashable) -> None:
        """Give a request up; one that is not open is no error."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        self._scheduler.abort(list(request.sequences))
        for identity in request.sequences:
            self._sequences.pop(identity, None)

    def _add_group(self, request: OpenRequest, prompt_index: int, flow: Flow) -> None:
        """Queue the choices of one prompt that must run through the model."""
        parsed = request.parsed
        prompt = parsed.prompts[prompt_index]
        choices = list(parsed.choices_of(prompt_index))
        if choices[0].max_new_tokens == 0:
            # Only the prompt is scored, once for all its choices.
            choices = choices[:1] if choices[0].sampling.num_prompt_logprobs is not None else []
        starts = []
        for choice in choices:
            identity = SequenceId(self._next_sequence)
            self._next_sequence += 1
            sequence = OpenSequence(identity, request, choice)
            request.add(sequence)
            self._sequences[identity] = sequence
            starts.append(
                SequenceStart(identity, prompt.tokens, len(prompt.tokens), choice.sampling)
            )
        if starts:
            sampling, limit = choices[0].sampling, choices[0].max_new_tokens
            runs_to_limit = not parsed.stop and not sampling.stop_token_ids
            self._scheduler.add(
                SequenceGroup(tuple(starts), limit, limit if runs_to_limit else None, flow)
            )

    def _count(self, request: OpenRequest, sequence: OpenSequence) -> None:
        prompt_index = sequence.choice.prompt_index
        if prompt_index not in request.counted_prompts:
            request.counted_prompts.add(prompt_index)
            num_tokens = len(request.parsed.prompts[prompt_index].tokens)
            self.totals.tokens_in += num_tokens
            self._metrics.tokens_in.inc(num_tokens)
        if sequence.choice.max_new_tokens:
            self.totals.tokens_out += 1
            self._metrics.tokens_out.inc()

    def _finish(self, request: OpenRequest, error: GlinthawkError | None = None) -> None:
        self.close(request.key)
        self._on_end(request, error)
