"""Control messages of membership as frozen data: what other rooms see instead of protobuf.

The conversions are in `conversions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.wire.frames import PROTOCOL_VERSION


class Role(Enum):
    """What a process that joins a gateway is."""

    STAGE = "stage"
    ATTENTION = "attention"


@dataclass(frozen=True)
class StageOffer:
    """A stage's part of a Registration: layers [first_layer, last_layer) of num_layers.

    model_digest is equal on all stages of a model; dtype is that of activations on the wire.
    """

    first_layer: int
    last_layer: int
    num_layers: int
    model_digest: str
    dtype: DType


@dataclass(frozen=True)
class AttentionOffer:
    """An attention worker's part of a Registration: memory for KV, formats it can hold, and
    the kernel in use, such as ``avx2`` or ``reference``."""

    kv_memory_bytes: int
    dtypes: tuple[DType, ...]
    kernel: str = ""


@dataclass(frozen=True)
class Registration:
    """First message of a process that joins.

    address is host:port of its gRPC server; tcp_port is 0 without a TCP data listener. instance
    tells the process from another one of its name, and is the same whenever it registers.
    """

    name: str
    version: str
    address: str
    offer: StageOffer | AttentionOffer
    tcp_port: int = 0
    protocol_version: int = PROTOCOL_VERSION
    instance: str = ""

    @property
    def role(self) -> Role:
        """What the process is, from what it offers."""
        return Role.STAGE if isinstance(self.offer, StageOffer) else Role.ATTENTION


@dataclass(frozen=True)
class Heartbeat:
    """Sign of life with figures by name, such as kv_used_bytes or busy_seconds.

    drain_s: set when the process wants to leave, the seconds that it will still stay for what
    it holds; the gateway shuts it down as soon as nothing of that is needed.
    """

    stats: Mapping[str, float] = field(default_factory=dict)
    drain_s: float | None = None


@dataclass(frozen=True)
class Leaving:
    """A member goes on purpose."""

    reason: str


PeerMessage = Registration | Heartbeat | Leaving


@dataclass(frozen=True)
class Accepted:
    """The gateway's yes. A member that is silent for lease_s seconds is lost."""

    epoch: int
    lease_s: float


@dataclass(frozen=True)
class Refused:
    """The gateway's no; trying again with the same registration does not help."""

    reason: str


@dataclass(frozen=True)
class Member:
    """A member as others see it. Layers are those of a stage, 0 and 0 for a worker.

    epoch: given at its registration, and raised when the gateway wants what it holds dropped.
    Frames carry that of their lane's attention worker.
    """

    role: Role
    name: str
    address: str
    first_layer: int = 0
    last_layer: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class View:
    """Who is there: stages in the order of their layers, and workers.

    epoch: grows with each view, and is greater than those of the members. geometry: the shape
    of the workers' pages, known once a stage has said in which format it computes.
    """

    epoch: int
    stages: tuple[Member, ...]
    workers: tuple[Member, ...]
    geometry: KVGeometry | None = None


@dataclass(frozen=True)
class Shutdown:
    """The gateway asks a member to end."""

    reason: str


GatewayMessage = Accepted | Refused | View | Shutdown
