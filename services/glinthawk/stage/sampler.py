"""Chooses the next tokens of many sequences from their logits.

The meaning and the order are vLLM's (v1 sampler): logprobs of the raw logits; stop tokens masked
until min_tokens; repetition, frequency, presence penalties; temperature (below 1e-5 greedy);
min_p; top_k; top_p. The draw is Gumbel-max with counter-based noise (`noise`), so a token depends
on its sequence alone. Equal scores: the lowest id.

A sequence is registered before its first token is sampled; what penalties must know of its past
is a cache that the registration rebuilds. Rows are worked on in groups that need the same steps;
rows that are greedy and plain cost one argmax.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SampledToken, SequenceStart, TokenLogprobs
from glinthawk.errors import InvariantBroken
from glinthawk.stage.draw import draw_tokens
from glinthawk.stage.filters import TokenCounts, apply_penalties
from glinthawk.stage.history import TokenHistory
from glinthawk.stage.logprobs import prompt_logprobs, token_logprobs
from glinthawk.stage.parameters import Method, ParameterTable

__all__ = ["Sampler", "prompt_logprobs"]


class Sampler:
    """Samples for the registered sequences of one last stage. Used by one thread."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._table = ParameterTable(vocab_size)
        self._starts: dict[int, SequenceStart] = {}
        self._histories: dict[int, TokenHistory] = {}

    def register(self, start: SequenceStart) -> None:
        """Learn of a sequence, or learn anew what is known of it."""
        self._starts[start.sequence] = start
        self._table.put(start.sequence, start.sampling, start.prompt_tokens)
        self._histories.pop(start.sequence, None)
        if _has_penalties(start.sampling):
            self._histories[start.sequence] = TokenHistory(start.tokens, start.prompt_tokens)

    def forget(self, sequences: Iterable[SequenceId]) -> None:
        """Drop sequences; unknown ones are no error."""
        for sequence in sequences:
            if self._starts.pop(sequence, None) is not None:
                self._table.remove(sequence)
                self._histories.pop(sequence, None)

    def start_of(self, sequence: SequenceId) -> SequenceStart:
        """Return what `sequence` was registered with.

        Raises:
            InvariantBroken: it is not registered.
        """
        start = self._starts.get(sequence)
        if start is None:
            raise InvariantBroken(f"sequence {sequence} is not registered with the sampler")
        return start

    @torch.inference_mode()
    def sample(
        self, sequences: Sequence[int], positions: Sequence[int], logits: torch.Tensor
    ) -> list[SampledToken]:
        """Choose a token for each row.

        positions[i]: where row i's new token will stand, which is the number of tokens before
        it. logits: float32 [n, vocabulary], left as it is. A row with a logit that is not
        finite gets an error, and a token that means nothing. Sampling a position again (a
        replayed step) gives the same token.

        Raises:
            InvariantBroken: a sequence is not registered, or its tokens are not all known.
        """
        ids = [int(sequence) for sequence in sequences]
        places = np.asarray(positions, dtype=np.int64)
        parameters = self._table.rows(ids)
        # One pass over the logits: a sum is finite exactly if all its terms are.
        is_finite = torch.isfinite(logits.sum(dim=1)).cpu().numpy()
        needs_mask = places - parameters["prompt_tokens"] < parameters["min_tokens"]
        is_adjusted = needs_mask | parameters["has_penalties"]
        tokens = np.zeros(len(ids), dtype=np.int64)
        groups = parameters["method"].astype(np.int64) * 2 + is_adjusted
        for group in np.unique(groups[is_finite]).tolist():
            rows = np.flatnonzero((groups == group) & is_finite)
            part = self._rows_of(logits, rows, copy=bool(group % 2))
            if group % 2:
                members = [ids[row] for row in rows.tolist()]
                self._mask_stops(part, members, needs_mask[rows])
                self._penalise(part, members, places[rows])
            tokens[rows] = draw_tokens(part, Method(group // 2), parameters[rows], places[rows])
        rows = np.flatnonzero(parameters["wants_logprobs"] & is_finite)
        num_top = parameters["num_logprobs"][rows]
        logprobs = self._logprobs(logits, rows, tokens[rows], num_top)
        return self._results(ids, tokens.tolist(), is_finite.tolist(), logprobs)

    def _rows_of(
        self, logits: torch.Tensor, rows: npt.NDArray[np.int64], *, copy: bool
    ) -> torch.Tensor:
        if len(rows) == len(logits) and not copy:
            return logits
        return logits.index_select(0, torch.from_numpy(rows).to(self._device))

    def _mask_stops(
        self, logits: torch.Tensor, ids: Sequence[int], needs_mask: npt.NDArray[np.bool_]
    ) -> None:
        """Make the stop tokens of those sequences impossible that may not end yet."""
        pairs = [
            (row, token)
            for row in np.flatnonzero(needs_mask).tolist()
            for token in self._starts[ids[row]].sampling.stop_token_ids
            if token < self._vocab_size
        ]
        if pairs:
            index = torch.tensor(pairs, dtype=torch.int64, device=self._device)
            logits[index[:, 0], index[:, 1]] = -torch.inf

    def _penalise(
        self, logits: torch.Tensor, ids: Sequence[int], positions: npt.NDArray[np.int64]
    ) -> None:
        """Apply the penalties of those sequences that have any, in place."""
        rows = [row for row, sequence in enumerate(ids) if sequence in self._histories]
        if not rows:
            return
        histories = [self._histories[ids[row]] for row in rows]
        for row, history in zip(rows, histories, strict=True):
            history.rewind(int(positions[row]))
        lengths = [len(history.ids) for history in histories]
        samplings = [self._starts[ids[row]].sampling for row in rows]
        penalties = np.array(
            [
                (item.repetition_penalty, item.frequency_penalty, item.presence_penalty)
                for item in samplings
            ],
            dtype=np.float32,
        ).repeat(lengths, axis=0)
        columns = torch.from_numpy(penalties).to(self._device)
        counts = TokenCounts(
            rows=torch.from_numpy(np.repeat(rows, lengths)).to(self._device),
            tokens=torch.from_numpy(np.concatenate([h.ids for h in histories])).to(self._device),
            outputs=torch.from_numpy(np.concatenate([h.outputs for h in histories])).to(
                self._device
            ),
            repetition=columns[:, 0],
            frequency=columns[:, 1],
            presence=columns[:, 2],
        )
        apply_penalties(logits, counts)

    def _logprobs(
        self,
        logits: torch.Tensor,
        rows: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        num_top: npt.NDArray[np.int32],
    ) -> dict[int, TokenLogprobs]:
        """Return the logprobs of the rows that asked for them, by row."""
        if not len(rows):
            return {}
        chosen = torch.from_numpy(tokens).to(self._device)
        part = self._rows_of(logits, rows, copy=False)
        scored = token_logprobs(part, chosen, num_top.tolist())
        return dict(zip(rows.tolist(), scored, strict=True))

    def _results(
        self,
        ids: Sequence[int],
        tokens: Sequence[int],
        is_finite: Sequence[bool],
        logprobs: dict[int, TokenLogprobs],
    ) -> list[SampledToken]:
        results = []
        for row, (sequence, token) in enumerate(zip(ids, tokens, strict=True)):
            if not is_finite[row]:
                error = (
                    "a logit was not finite: the model overflowed in this number format; "
                    "try --dtype bfloat16 or float32"
                )
                results.append(SampledToken(SequenceId(sequence), 0, error=error))
                continue
            history = self._histories.get(sequence)
            if history is not None:
                history.append(token)
            results.append(SampledToken(SequenceId(sequence), token, logprobs.get(row)))
        return results


def _has_penalties(sampling: SamplingParams) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )
