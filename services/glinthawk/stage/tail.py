"""What only the last stage does: logits, sampling, logprobs of prompts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import SampledToken, StepKind, StepPlan, StepResult, TokenLogprobs
from glinthawk.stage.logprobs import prompt_logprobs
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.sampler import Sampler
from glinthawk.stage.work import Passage

LOGIT_ROWS = 256
"""Rows of a prompt whose logits are in memory at once."""

PromptLogprobs = tuple[SequenceId, int, TokenLogprobs]


class Tail:
    """Turns the residual of steps that are through all layers into their results."""

    def __init__(self, runner: SegmentRunner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler
        # Sequences of whose prompt a logit was not finite; they end when they are sampled.
        self._spoiled: set[SequenceId] = set()
        # Whose steps registered a sequence: one that was set back may run elsewhere by the time
        # its former worker is told to release it.
        self._owners: dict[SequenceId, str] = {}

    def finish(self, passages: Sequence[Passage]) -> list[StepResult]:
        """Return the result of each step. All are of one kind; decode steps sample together."""
        for passage in passages:
            plan = passage.plan
            self._forget(item for item in plan.releases if self._owners.get(item) == plan.worker)
            for start in plan.registrations:
                self._sampler.register(start)
                self._owners[start.sequence] = plan.worker
        scored = [tuple(self._score_prompts(passage)) for passage in passages]
        rows = [np.flatnonzero(passage.plan.samples) for passage in passages]
        sampled = iter(self._sample(passages, rows))
        return [
            StepResult(
                lane=passage.plan.lane,
                step=passage.plan.step,
                sampled=tuple(self._check(next(sampled)) for _ in chosen),
                prompt_logprobs=prompt_logprobs,
            )
            for passage, chosen, prompt_logprobs in zip(passages, rows, scored, strict=True)
        ]

    def forget_worker(self, worker: str) -> None:
        """Drop the sequences that `worker` held; those that run elsewhere by now stay."""
        self._forget([item for item, owner in self._owners.items() if owner == worker])

    def forget_all(self) -> None:
        """Drop all sequences."""
        self._forget(list(self._owners))

    def _forget(self, sequences: Iterable[SequenceId]) -> None:
        for sequence in sequences:
            self._sampler.forget((sequence,))
            self._spoiled.discard(sequence)
            self._owners.pop(sequence, None)

    def _check(self, sample: SampledToken) -> SampledToken:
        if sample.error is None and sample.sequence in self._spoiled:
            return replace(sample, error="a logit of the prompt is not finite", logprobs=None)
        return sample

    def _sample(
        self, passages: Sequence[Passage], rows: Sequence[np.ndarray[tuple[int], np.dtype[np.intp]]]
    ) -> list[SampledToken]:
        sequences: list[SequenceId] = []
        positions: list[int] = []
        residuals: list[torch.Tensor] = []
        for passage, chosen in zip(passages, rows, strict=True):
            plan = passage.plan
            if not len(chosen):
                continue
            lasts = np.cumsum(plan.counts.astype(np.int64))[chosen] - 1
            sequences += [SequenceId(item) for item in plan.sequences[chosen].tolist()]
            positions += (plan.starts.astype(np.int64) + plan.counts)[chosen].tolist()
            every_row = len(lasts) == plan.num_rows
            residuals.append(
                passage.residual
                if every_row
                else passage.residual[torch.from_numpy(lasts).to(self._runner.device)]
            )
        if not sequences:
            return []
        residual = torch.cat(residuals) if len(residuals) > 1 else residuals[0]
        return self._sampler.sample(sequences, positions, self._runner.logits(residual))

    def _score_prompts(self, passage: Passage) -> Iterator[PromptLogprobs]:
        plan = passage.plan
        if plan.kind is not StepKind.PREFILL:
            return
        ends = np.cumsum(plan.counts.astype(np.int64))
        for index, end in enumerate(ends.tolist()):
            sequence = SequenceId(int(plan.sequences[index]))
            start = self._sampler.start_of(sequence)
            if start.sampling.num_prompt_logprobs is not None:
                first_row = end - int(plan.counts[index])
                residual = passage.residual[first_row:end]
                yield from self._score_prompt(plan, index, residual)

    def _score_prompt(
        self, plan: StepPlan, index: int, residual: torch.Tensor
    ) -> Iterator[PromptLogprobs]:
        """Yield the logprobs of the prompt's tokens that this step's rows predict."""
        sequence = SequenceId(int(plan.sequences[index]))
        start = self._sampler.start_of(sequence)
        first = int(plan.starts[index]) + 1
        targets = start.tokens[first : min(first + len(residual), start.prompt_tokens)]
        num_top = start.sampling.num_prompt_logprobs or 0
        for offset in range(0, len(targets), LOGIT_ROWS):
            part = targets[offset : offset + LOGIT_ROWS]
            logits = self._runner.logits(residual[offset : offset + len(part)])
            scored = prompt_logprobs(logits, part, num_top)
            for position, logprobs in enumerate(scored, start=first + offset):
                if math.isfinite(logprobs.logprob):
                    yield sequence, position, logprobs
                else:
                    self._spoiled.add(sequence)
