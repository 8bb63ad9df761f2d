"""A step on its way through one stage, and the events that move it on."""

from dataclasses import dataclass, field

import numpy as np
import torch

from glinthawk.core.step import StepKind, StepPlan
from glinthawk.errors import GlinthawkError
from glinthawk.scheduler import ReadyItem
from glinthawk.wire.frames import FrameHeader
from glinthawk.wire.messages import Member
from glinthawk.wire.outbox import Outbox


@dataclass
class Passage:
    """One step inside this stage.

    layer: the layer that runs next; the stage's last layer + 1 means that the step leaves.
    residual: float32 [rows, hidden], on the stage's device.
    positions: int64 [rows].
    output: [rows, query heads x head size] activation dtype, in host memory; the attention
        worker's answer is received into it. None in a prefill step.
    is_composed: the worker has made room for the step (stage 0 only waits for it).
    fetched: layer -> the worker's earlier K, V rows, for prompts that come in chunks.
    """

    plan: StepPlan
    epoch: int
    worker: Outbox
    layer: int
    residual: torch.Tensor
    positions: torch.Tensor
    output: torch.Tensor | None
    is_composed: bool
    order: int = 0
    is_waiting: bool = False
    sent_at: float = 0.0
    fetched: dict[int, memoryview] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        """Lane and step."""
        return (self.plan.lane, self.plan.step)

    @property
    def num_earlier_rows(self) -> int:
        """Rows of K and V that the worker holds of this prefill step's sequences already."""
        return int(self.plan.starts.sum()) if self.plan.kind is StepKind.PREFILL else 0

    def output_bytes(self) -> memoryview:
        """The bytes that the worker's answer is received into."""
        assert self.output is not None
        return tensor_bytes(self.output)

    def ready_item(self) -> ReadyItem:
        """What the choice of the next segment must know of this step."""
        return ReadyItem(
            kind=self.plan.kind,
            lane=self.plan.lane,
            layer=self.layer,
            rows=self.plan.num_rows,
            order=self.order,
        )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor in host memory: the same one if it is there."""
    return tensor.to("cpu").contiguous()


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy in host memory, which nobody writes to again."""
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def row_positions(plan: StepPlan) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the position of each row: starts[i], starts[i] + 1, ... for every sequence."""
    counts = plan.counts.astype(np.int64)
    ends = np.cumsum(counts)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    return np.asarray(np.repeat(plan.starts.astype(np.int64), counts) + within)


@dataclass(frozen=True)
class StepArrived:
    """A STEP frame; activations are float32 [rows, hidden] in host memory, None at stage 0."""

    header: FrameHeader
    plan: StepPlan
    activations: memoryview | None


@dataclass(frozen=True)
class WorkerAnswered:
    """A COMPOSED, OUTPUT, FETCHED or FAILED frame of an attention worker."""

    worker: str
    header: FrameHeader
    payload: memoryview


@dataclass(frozen=True)
class ViewChanged:
    """The gateway's view, as far as this stage sends to somebody; next_stage None on the last."""

    epoch: int
    workers: tuple[Member, ...]
    next_stage: Member | None


@dataclass(frozen=True)
class LinkUp:
    """A member of the view can be reached."""

    member: Member
    outbox: Outbox


@dataclass(frozen=True)
class LinkLost:
    """A member of the view could not be reached, or the connection to it broke."""

    member: Member
    error: GlinthawkError


@dataclass(frozen=True)
class GatewayConnected:
    """The gateway opened its data connection."""

    outbox: Outbox


@dataclass(frozen=True)
class GatewayLost:
    """The gateway's data connection broke."""

    outbox: Outbox
    reason: str


@dataclass(frozen=True)
class RunEnded:
    """The gateway's run is over: its connections are closed, nothing of it is needed again."""


@dataclass(frozen=True)
class Stop:
    """The loop ends."""


Event = (
    StepArrived
    | WorkerAnswered
    | ViewChanged
    | LinkUp
    | LinkLost
    | GatewayConnected
    | GatewayLost
    | RunEnded
    | Stop
)
