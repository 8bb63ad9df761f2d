import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidRequest
from glinthawk.wire.conversions import (
    gateway_message_from_proto,
    gateway_message_to_proto,
    peer_message_from_proto,
    peer_message_to_proto,
)
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    GatewayMessage,
    Heartbeat,
    Leaving,
    Member,
    PeerMessage,
    Refused,
    Registration,
    Role,
    Shutdown,
    StageOffer,
    View,
)
from glinthawk.wire.proto import membership_pb2 as pb

STAGE = Registration(
    "stage-0", "0.1.0", "10.0.0.1:7000", StageOffer(0, 15, 30, "sha256:ab", DType.BFLOAT16), 7001
)
WORKER = Registration(
    "worker-0", "0.1.0", "[::1]:7000", AttentionOffer(1 << 40, tuple(DType), "avx2"), 0, 3, "a1"
)
GEOMETRY = KVGeometry(3, 9, 3, 64, DType.FLOAT16, (None, 4096, None), 32)


@pytest.mark.parametrize(
    "message",
    [STAGE, WORKER, Heartbeat({"kv_used_bytes": 2.0**40}), Heartbeat({}, 0.0), Leaving("drained")],
)
def test_a_members_message_comes_back(message: PeerMessage) -> None:
    data = peer_message_to_proto(message).SerializeToString()
    assert peer_message_from_proto(pb.PeerMessage.FromString(data)) == message


@pytest.mark.parametrize(
    "message",
    [
        Accepted(7, 2.5),
        View(9, (), (), GEOMETRY),
        Refused("other model"),
        View(
            9,
            (Member(Role.STAGE, "s0", "a:1", 0, 15), Member(Role.STAGE, "s1", "b:1", 15, 30)),
            (Member(Role.ATTENTION, "w0", "c:1", epoch=8),),
        ),
        Shutdown("done"),
    ],
)
def test_a_gateways_message_comes_back(message: GatewayMessage) -> None:
    data = gateway_message_to_proto(message).SerializeToString()
    assert gateway_message_from_proto(pb.GatewayMessage.FromString(data)) == message


def test_the_role_follows_from_the_offer() -> None:
    assert (STAGE.role, WORKER.role) == (Role.STAGE, Role.ATTENTION)


def test_empty_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        peer_message_from_proto(pb.PeerMessage())
    with pytest.raises(InvalidRequest, match="empty"):
        gateway_message_from_proto(pb.GatewayMessage())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("name", "", "no name"), ("role", pb.ROLE_ATTENTION, "role"), ("role", 9, "role")],
)
def test_a_registration_that_contradicts_itself_is_refused(
    field: str, value: object, message: str
) -> None:
    raw = peer_message_to_proto(STAGE)
    setattr(raw.registration, field, value)
    with pytest.raises(InvalidRequest, match=message):
        peer_message_from_proto(raw)


def test_a_stage_without_layers_is_refused_with_its_range() -> None:
    raw = peer_message_to_proto(STAGE)
    raw.registration.stage.last_layer = 31
    with pytest.raises(InvalidRequest, match=r"\[0, 31\) of 30"):
        peer_message_from_proto(raw)


def test_an_unknown_number_format_is_refused() -> None:
    raw = peer_message_to_proto(STAGE)
    raw.registration.stage.dtype = 9  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="number format 9"):
        peer_message_from_proto(raw)


def test_a_geometry_needs_a_window_a_layer() -> None:
    raw = gateway_message_to_proto(View(1, (), (), GEOMETRY))
    del raw.view.geometry.windows[0]
    with pytest.raises(InvalidRequest, match="2 windows"):
        gateway_message_from_proto(raw)
