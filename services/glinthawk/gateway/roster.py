"""Which processes make up the tiers of one model: who fits, who is there, who is missing. Pure.

Each member has an epoch: that of its registration, or a later one, given when what it holds is to
be dropped.
"""

from dataclasses import dataclass

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvariantBroken
from glinthawk.models.config import ModelConfig
from glinthawk.wire.messages import AttentionOffer, Member, Registration, Role, StageOffer, View

_ROLE_WORDS = {Role.STAGE: "stage", Role.ATTENTION: "attention worker"}


def _with_article(role: Role) -> str:
    words = _ROLE_WORDS[role]
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def smallest_page_bytes(config: ModelConfig, kv_dtype: DType | None) -> int:
    """Return the bytes of a KV page; of the narrowest format while it is not known."""
    return config.kv_geometry(kv_dtype or DType.FLOAT16).page_bytes


@dataclass(frozen=True)
class WorkerEntry:
    """An attention worker that is there.

    epoch: of its frames now. instance: tells a process from another one of the same name.
    """

    name: str
    kv_bytes: int
    epoch: int
    instance: str


class Roster:
    """The wanted and the present members.

    Args:
        config: of the model; every stage must serve it.
        digest: of the model's files, as `model_digest` gives it.
        num_stages, num_workers: how many make the tiers complete.
        kv_dtype: format of the KV cache; None takes the format in which the stages compute.
    """

    def __init__(
        self,
        config: ModelConfig,
        digest: str,
        *,
        num_stages: int,
        num_workers: int,
        kv_dtype: DType | None,
    ) -> None:
        self._config = config
        self._digest = digest
        self._layers = config.split_layers(num_stages)
        self._num_workers = num_workers
        self._kv_dtype = kv_dtype
        self._members: dict[str, Registration] = {}
        self._epochs: dict[str, int] = {}
        self._settled: DType | None = None

    @property
    def wire_dtype(self) -> DType | None:
        """Format in which the stages compute; None before the first is there."""
        present = next((offer.dtype for offer in self._stages().values()), None)
        return self._settled or present

    @property
    def has_all_stages(self) -> bool:
        """Whether every layer has its stage."""
        return len(self._stages()) == len(self._layers)

    @property
    def is_complete(self) -> bool:
        """Whether all stages and enough workers are there."""
        return self.has_all_stages and len(self.worker_memory()) >= self._num_workers

    def settle_format(self) -> None:
        """Keep to the format of the stages that are there: the KV cache has its shape."""
        self._settled = self.wire_dtype

    @property
    def has_geometry(self) -> bool:
        """Whether the shape of the KV pages is known."""
        return (self._kv_dtype or self.wire_dtype) is not None

    def geometry(self) -> KVGeometry:
        """Return the shape of the KV pages.

        Raises:
            InvariantBroken: no stage has said yet in which format it computes.
        """
        dtype = self._kv_dtype or self.wire_dtype
        if dtype is None:
            raise InvariantBroken("the KV format is not known before the first stage is there")
        return self._config.kv_geometry(dtype)

    def worker_memory(self) -> dict[str, int]:
        """Return the KV memory of each worker, in bytes, by name."""
        return {
            name: member.offer.kv_memory_bytes
            for name, member in self._members.items()
            if isinstance(member.offer, AttentionOffer)
        }

    def reason_to_refuse(self, registration: Registration) -> str | None:
        """Say why a process may not join; None if it may."""
        other = self._members.get(registration.name)
        if other is not None and other.role is not registration.role:
            return (
                f"the name {registration.name!r} is taken by {_with_article(other.role)}: give "
                "each process a name of its own"
            )
        if isinstance(registration.offer, StageOffer):
            return self._reason_against_stage(registration.name, registration.offer)
        return self._reason_against_worker(registration.offer)

    def workers(self) -> tuple[WorkerEntry, ...]:
        """Return the attention workers that are there."""
        return tuple(
            WorkerEntry(name, kv_bytes, self._epochs[name], self._members[name].instance)
            for name, kv_bytes in self.worker_memory().items()
        )

    def addresses(self) -> dict[str, str]:
        """Return host:port of the gRPC server of each member, by name."""
        return {name: member.address for name, member in self._members.items()}

    def stages(self) -> tuple[Member, ...]:
        """Return the stages that are there, in the order of their layers."""
        ordered = sorted(self._stages().items(), key=lambda item: item[1].first_layer)
        return tuple(
            Member(
                Role.STAGE,
                name,
                self._members[name].address,
                offer.first_layer,
                offer.last_layer,
                epoch=self._epochs[name],
            )
            for name, offer in ordered
        )

    def add(self, registration: Registration, epoch: int) -> None:
        """Take a process in; one of the same name is replaced."""
        self._members[registration.name] = registration
        self._epochs[registration.name] = epoch

    def raise_epoch(self, name: str, epoch: int) -> None:
        """Give a member a later epoch: what it holds is void."""
        self._epochs[name] = epoch

    def remove(self, name: str) -> str:
        """Forget a process and return what it was."""
        member = self._members.pop(name, None)
        self._epochs.pop(name, None)
        if member is None:
            return "process"
        return _ROLE_WORDS[member.role]

    def describe_missing(self) -> str:
        """Say in words who is not there yet."""
        present = {(offer.first_layer, offer.last_layer) for offer in self._stages().values()}
        missing = [
            f"the stage of layers {first} to {last - 1}"
            for first, last in self._layers
            if (first, last) not in present
        ]
        num_workers = len(self.worker_memory())
        if num_workers < self._num_workers:
            missing.append(f"{self._num_workers - num_workers} of {self._num_workers} workers")
        return f"{' and '.join(missing)} did not register"

    def build_view(self, epoch: int) -> View:
        """Return who is there, for the members themselves."""
        return View(
            epoch=epoch,
            stages=self.stages(),
            workers=tuple(
                Member(Role.ATTENTION, name, self._members[name].address, epoch=self._epochs[name])
                for name in self.worker_memory()
            ),
            geometry=self.geometry(),
        )

    def _stages(self) -> dict[str, StageOffer]:
        return {
            name: member.offer
            for name, member in self._members.items()
            if isinstance(member.offer, StageOffer)
        }

    def _reason_against_stage(self, name: str, offer: StageOffer) -> str | None:
        if offer.model_digest != self._digest:
            return (
                f"stage {name!r} serves a model with digest {offer.model_digest[:12]}, this "
                f"gateway one with {self._digest[:12]}: give both the same --model"
            )
        layers = (offer.first_layer, offer.last_layer)
        if layers not in self._layers:
            wanted = ", ".join(f"{first}-{last - 1}" for first, last in self._layers)
            return (
                f"stage {name!r} has layers {layers[0]}-{layers[1] - 1}, this gateway's stages "
                f"have {wanted}: start both with the same number of stages"
            )
        for other, its_offer in self._stages().items():
            if other == name:
                continue
            if (its_offer.first_layer, its_offer.last_layer) == layers:
                return f"layers {layers[0]}-{layers[1] - 1} are served by stage {other!r} already"
            if its_offer.dtype is not offer.dtype:
                return (
                    f"stage {name!r} computes in {offer.dtype.label}, stage {other!r} in "
                    f"{its_offer.dtype.label}: give all stages the same --dtype"
                )
        if self._settled is not None and offer.dtype is not self._settled:
            return (
                f"stage {name!r} computes in {offer.dtype.label}, the stages of this gateway began "
                f"in {self._settled.label}: give it the same --dtype"
            )
        return None

    def _reason_against_worker(self, offer: AttentionOffer) -> str | None:
        if self._kv_dtype is not None and self._kv_dtype not in offer.dtypes:
            formats = ", ".join(dtype.label for dtype in offer.dtypes)
            return f"the KV format {self._kv_dtype.label} is not among this worker's: {formats}"
        smallest = smallest_page_bytes(self._config, self._kv_dtype or self._settled)
        if offer.kv_memory_bytes < smallest:
            return (
                f"its KV memory of {offer.kv_memory_bytes} bytes does not hold one page of "
                f"{smallest} bytes: raise kv_memory"
            )
        return None
