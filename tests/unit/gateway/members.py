"""Stages and workers that only register and take connections, for tests of the cluster."""

import queue
import time
from collections.abc import Callable

from glinthawk.core.dtype import DType
from glinthawk.models.config import ModelConfig, RopeConfig
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Registration,
    StageOffer,
    View,
)
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

WAIT_S = 120.0

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    num_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=100,
    context_length=128,
    norm_eps=1e-5,
    rope=RopeConfig(theta=10_000.0, linear_factor=1.0, llama3=None),
    windows=(None,) * 4,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_embeddings=True,
)


class TestMember:
    """A member with a real membership and a real data server."""

    __test__ = False

    def __init__(self, name: str, offer: StageOffer | AttentionOffer, gateway: str) -> None:
        self.name = name
        self.offer = offer
        self.gateway = gateway
        self.views: queue.Queue[View] = queue.Queue()
        self.connections: queue.Queue[Connection] = queue.Queue()
        self.refusals: queue.Queue[str] = queue.Queue()
        self.shutdowns: queue.Queue[str] = queue.Queue()
        self.accepted: queue.Queue[int] = queue.Queue()
        self.heartbeat = Heartbeat()
        self._accepted: list[Connection] = []
        self.server = GrpcServer("127.0.0.1", 0)
        self.data = DataServer(name, self._accept, DataServerOptions())
        self.data.attach(self.server)
        self.server.start()
        self.data.start()
        self.client = self._join()

    def _join(self) -> MembershipClient:
        registration = Registration(
            self.name,
            "1",
            self.server.address,
            self.offer,
            tcp_port=self.data.tcp_port,
            instance=f"process of {self.server.address}",
        )
        options = MembershipOptions(self.gateway, backoff_s=0.05)
        client = MembershipClient(registration, self, lambda: self.heartbeat, options)
        client.start()
        return client

    def leave(self) -> None:
        """Leave on purpose."""
        self.client.stop()

    def join_again(self) -> None:
        """Register anew, as another process of the same name and address does."""
        self.client = self._join()

    def close(self) -> None:
        """End it."""
        self.client.stop()
        for connection in self._accepted:
            connection.close()
        self.data.stop()
        self.server.stop(0.0)

    def next_view(self, fits: Callable[[View], bool] = lambda view: True) -> View:
        """Return the next view that fits."""
        deadline = time.monotonic() + WAIT_S
        while True:
            view = self.views.get(timeout=max(0.01, deadline - time.monotonic()))
            if fits(view):
                return view

    def next_connection(self) -> Connection:
        """Return the next data connection that the gateway opened."""
        return self.connections.get(timeout=WAIT_S)

    def _accept(self, connection: Connection, hello: Hello) -> None:
        assert hello.role == "gateway"
        self._accepted.append(connection)
        self.connections.put(connection)

    def on_accepted(self, accepted: Accepted) -> None:
        """Keep an epoch."""
        self.accepted.put(accepted.epoch)

    def on_view(self, view: View) -> None:
        """Keep a view."""
        self.views.put(view)

    def on_refused(self, reason: str) -> None:
        """Keep a refusal."""
        self.refusals.put(reason)

    def on_shutdown(self, reason: str) -> None:
        """Keep the reason."""
        self.shutdowns.put(reason)

    def on_lost(self, reason: str) -> None:
        """The gateway is away."""


def stage_offer(first: int, last: int, dtype: DType = DType.FLOAT32) -> StageOffer:
    """Return the offer of a stage of the test's model of four layers."""
    return StageOffer(first, last, 4, "digest", dtype)


def worker_offer(kv_memory: int = 1 << 30) -> AttentionOffer:
    """Return the offer of a worker that holds every format."""
    return AttentionOffer(kv_memory, tuple(DType))
