"""An attention worker that other workers and a gateway can reach, in the test's process."""

import threading

from prometheus_client import CollectorRegistry

from glinthawk.attention.frame import Frame
from glinthawk.attention.intake import Intake, Stop
from glinthawk.attention.selection import Preference
from glinthawk.attention.sender import PageSender, PageWanted
from glinthawk.core.ids import SequenceId
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.pages import PagesToSend, attach_pages
from unit.attention.factories import EPOCH, GEOMETRY, Stage, make_worker

JOIN_S = 10.0


class LiveWorker:
    """The product's parts, wired as in its process. `stage` speaks to the worker directly: only
    while nothing is being copied."""

    def __init__(
        self,
        name: str,
        *,
        num_pages: int = 64,
        prefer: Preference = "reference",
        transport: str = "auto",
    ) -> None:
        metrics = ServiceMetrics(CollectorRegistry())
        self.name = name
        self.worker = make_worker(num_pages=num_pages, prefer=prefer, metrics=metrics)
        self.stage = Stage(self.worker)
        self._intake = Intake(metrics)
        self.sender = PageSender(
            name,
            self._intake.post,
            lambda: GEOMETRY.page_tokens,
            DialOptions(transport=transport, role="attention"),
        )
        self._server = GrpcServer("127.0.0.1", 0)
        self._data = DataServer(name, self._intake.accept, DataServerOptions())
        self._data.attach(self._server)
        attach_pages(self._server, self.sender.send)
        self._server.start()
        self._data.start()
        self._thread = threading.Thread(target=self._compute)
        self._thread.start()

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def kv_used_bytes(self) -> int:
        return self.worker.stats().kv_used_bytes

    def order_to(
        self,
        target: "LiveWorker | str",
        sequence: int,
        num_tokens: int,
        *,
        number: int = 1,
        source_epoch: int = EPOCH,
        target_epoch: int = EPOCH,
    ) -> PagesToSend:
        """Return the order to copy a sequence from here to there (a worker, or an address)."""
        address = target if isinstance(target, str) else target.address
        return PagesToSend(
            number, SequenceId(sequence), num_tokens, source_epoch, "target", address, target_epoch
        )

    def stop_computing(self) -> None:
        """End the compute thread, as if it hung: connections stay."""
        self._intake.post(Stop())
        self._thread.join(JOIN_S)

    def close(self) -> None:
        self.stop_computing()
        self._intake.close()
        self.sender.close()
        self._data.stop()
        self._server.stop(0.0)

    def _compute(self) -> None:
        while not isinstance(item := self._intake.take(), Stop):
            if isinstance(item, PageWanted):
                item.settle(self.worker)
            elif isinstance(item, Frame):
                self.worker.handle(item)
