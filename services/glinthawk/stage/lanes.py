"""The steps inside a stage, by lane, and which of them could run now."""

from collections.abc import Iterator, Sequence

from glinthawk.scheduler import ReadyItem
from glinthawk.stage.work import Passage
from glinthawk.wire.frames import FrameHeader, FrameKind


class Lanes:
    """One step a lane. Changed by one thread; `receive_buffer` may be called by others.

    last_layer: the layer behind the stage's last one, at which steps leave.
    """

    def __init__(self, last_layer: int) -> None:
        self._last_layer = last_layer
        self._passages: dict[int, Passage] = {}
        self._ready: dict[int, Passage] = {}
        self._order = 0

    @property
    def has_ready(self) -> bool:
        """Whether a step could run now."""
        return bool(self._ready)

    def add(self, passage: Passage) -> None:
        """Take in a step that has come; it is ready once `look_at` finds it so."""
        self._passages[passage.plan.lane] = passage

    def find(self, header: FrameHeader) -> Passage | None:
        """Return the step that a worker's frame belongs to, None if it is here no more."""
        passage = self._passages.get(header.lane)
        if passage is None or (passage.epoch, passage.plan.step) != (header.epoch, header.step):
            return None
        return passage

    def of_worker(self, worker: str) -> Iterator[Passage]:
        """Yield the steps whose sequences `worker` holds; they may be dropped meanwhile."""
        yield from [item for item in self._passages.values() if item.plan.worker == worker]

    def receive_buffer(self, worker: str, header: FrameHeader) -> memoryview | None:
        """Return where a worker's OUTPUT belongs, or None for a frame that nobody awaits."""
        passage = self.find(header)
        if (
            passage is None
            or header.kind is not FrameKind.OUTPUT
            or passage.worker.peer != worker
            or passage.layer != header.layer + 1
            or not passage.is_waiting
        ):
            return None
        buffer = passage.output_bytes()
        return buffer if buffer.nbytes == header.payload_bytes else None

    def look_at(self, passage: Passage) -> None:
        """Count a step as ready if nothing that it needs is missing."""
        lane, last = passage.plan.lane, self._last_layer
        if lane in self._ready:
            return
        if passage.is_waiting or (passage.layer >= last and not passage.is_composed):
            return
        awaits_fetch = passage.num_earlier_rows > 0 and passage.layer < last
        if awaits_fetch and passage.layer not in passage.fetched:
            return
        self._order += 1
        passage.order = self._order
        self._ready[lane] = passage

    def ready_items(self) -> list[ReadyItem]:
        """Return what could run now, for the choice of the next segment."""
        return [passage.ready_item() for passage in self._ready.values()]

    def take(self, items: Sequence[ReadyItem]) -> list[Passage]:
        """Return the steps of a segment, which are ready no more."""
        return [self._ready.pop(item.lane) for item in items]

    def drop(self, passage: Passage) -> None:
        """Forget a step; if it is here no more, nothing happens."""
        self._passages.pop(passage.plan.lane, None)
        self._ready.pop(passage.plan.lane, None)

    def clear(self) -> None:
        """Forget all steps."""
        self._passages.clear()
        self._ready.clear()
