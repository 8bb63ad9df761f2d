"""One segment: what the stage computes between two attentions, for all lanes that are ready.

decode    [o of layer l - 1] -> after_attention(l - 1) -> before_attention(l) -> q, k, v
prefill   before_attention(l) -> attention here -> after_attention(l); K, V to the worker
"""

import time
from collections.abc import Callable, Sequence

import torch

from glinthawk.core.step import StepKind, StepPlan
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.work import (
    Passage,
    StepArrived,
    row_positions,
    tensor_bytes,
    to_host,
)
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.outbox import Outbox

FETCH_AHEAD = 2
"""Layers that a prompt's next chunk asks for earlier K and V ahead of their use."""


class Segments:
    """Runs segments and sends what the attention workers need of them."""

    def __init__(
        self,
        runner: SegmentRunner,
        prefill: PrefillAttention,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._prefill = prefill
        self._clock = clock

    def open(self, event: StepArrived, worker: Outbox) -> Passage:
        """Return a step that has come, at this stage's first layer, with memory for its answer."""
        runner, plan = self._runner, event.plan
        return Passage(
            plan=plan,
            epoch=event.header.epoch,
            worker=worker,
            layer=runner.first_layer,
            residual=self._first_residual(event),
            positions=torch.from_numpy(row_positions(plan)).to(runner.device),
            output=self._output_buffer(plan),
            is_composed=not runner.is_first,
        )

    def decode(self, chosen: Sequence[Passage]) -> None:
        """Take decode steps that are ready at one layer through their next segment."""
        runner, layer = self._runner, chosen[0].layer
        residual = _join([passage.residual for passage in chosen])
        if layer > runner.first_layer:
            output = _join([_output(passage) for passage in chosen]).to(runner.device)
            residual = runner.after_attention(layer - 1, residual, output)
        counts = [passage.plan.num_rows for passage in chosen]
        for passage, part in zip(chosen, torch.split(residual, counts), strict=True):
            passage.residual = part
        if layer == runner.last_layer:
            return
        positions = _join([passage.positions for passage in chosen])
        qkv = runner.before_attention(layer, residual, positions)
        for passage, part in zip(chosen, torch.split(qkv, counts), strict=True):
            passage.layer = layer + 1
            passage.is_waiting = True
            passage.sent_at = self._clock()
            passage.worker.post(
                self.header(passage, FrameKind.ATTEND, layer), tensor_bytes(to_host(part))
            )

    def prefill(self, passage: Passage) -> None:
        """Take a prefill step through one layer."""
        runner, layer = self._runner, passage.layer
        qkv = runner.before_attention(layer, passage.residual, passage.positions)
        rows = to_host(qkv[:, runner.output_width :])
        passage.worker.post(self.header(passage, FrameKind.STORE, layer), tensor_bytes(rows))
        self.fetch(passage, layer + FETCH_AHEAD)
        output = self._prefill.attend(layer, qkv, passage.plan, passage.fetched.pop(layer, None))
        passage.residual = runner.after_attention(layer, passage.residual, output)
        passage.layer = layer + 1

    def fetch(self, passage: Passage, layer: int) -> None:
        """Ask for the earlier K and V of a layer, if the step's prompts have any."""
        if passage.num_earlier_rows and layer < self._runner.last_layer:
            header = self.header(passage, FrameKind.FETCH, layer, passage.num_earlier_rows)
            passage.worker.post(header)

    def header(
        self, passage: Passage, kind: FrameKind, layer: int = 0, rows: int | None = None
    ) -> FrameHeader:
        """Return the header of a frame about `passage`; rows are the step's unless given."""
        return FrameHeader(
            kind,
            epoch=passage.epoch,
            lane=passage.plan.lane,
            step=passage.plan.step,
            layer=layer,
            rows=passage.plan.num_rows if rows is None else rows,
            dtype=self._runner.wire_dtype,
        )

    def _first_residual(self, event: StepArrived) -> torch.Tensor:
        runner, plan = self._runner, event.plan
        if runner.is_first:
            return runner.embed(torch.from_numpy(plan.tokens.astype("int64")).to(runner.device))
        if event.activations is None:
            return torch.empty(0, runner.hidden_size, device=runner.device)
        residual = torch.frombuffer(event.activations, dtype=torch.float32)
        return residual.view(plan.num_rows, runner.hidden_size).to(runner.device)

    def _output_buffer(self, plan: StepPlan) -> torch.Tensor | None:
        if plan.kind is not StepKind.DECODE:
            return None
        runner = self._runner
        return torch.empty(
            plan.num_rows,
            runner.output_width,
            dtype=runner.activation_dtype,
            pin_memory=runner.device.type == "cuda",
        )


def _output(passage: Passage) -> torch.Tensor:
    assert passage.output is not None, "a decode step has a buffer for its output"
    return passage.output


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
