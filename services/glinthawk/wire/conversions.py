"""Conversion of membership messages to and from protobuf; what a peer sends is checked here."""

from typing import Any

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidRequest
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


def peer_message_to_proto(message: PeerMessage) -> pb.PeerMessage:
    """Return the protobuf form of a member's message."""
    if isinstance(message, Heartbeat):
        heartbeat = pb.Heartbeat(stats=dict(message.stats), drain_seconds=message.drain_s)
        return pb.PeerMessage(heartbeat=heartbeat)
    if isinstance(message, Leaving):
        return pb.PeerMessage(leaving=pb.Leaving(reason=message.reason))
    offer = message.offer
    registration = pb.Registration(
        role=_role_to_proto(message.role),
        name=message.name,
        version=message.version,
        protocol_version=message.protocol_version,
        address=message.address,
        tcp_port=message.tcp_port,
        instance=message.instance,
    )
    if isinstance(offer, StageOffer):
        registration.stage.CopyFrom(
            pb.StageOffer(
                first_layer=offer.first_layer,
                last_layer=offer.last_layer,
                num_layers=offer.num_layers,
                model_digest=offer.model_digest,
                dtype=_dtype_to_proto(offer.dtype),
            )
        )
    else:
        registration.attention.CopyFrom(
            pb.AttentionOffer(
                kv_memory_bytes=offer.kv_memory_bytes,
                dtypes=[_dtype_to_proto(dtype) for dtype in offer.dtypes],
                kernel=offer.kernel,
            )
        )
    return pb.PeerMessage(registration=registration)


def peer_message_from_proto(message: pb.PeerMessage) -> PeerMessage:
    """Return a member's message as data.

    Raises:
        InvalidRequest: it is empty or contradicts itself.
    """
    which = message.WhichOneof("message")
    if which == "heartbeat":
        heartbeat = message.heartbeat
        wants_to_leave = heartbeat.HasField("drain_seconds")
        return Heartbeat(dict(heartbeat.stats), heartbeat.drain_seconds if wants_to_leave else None)
    if which == "leaving":
        return Leaving(message.leaving.reason)
    if which == "registration":
        return _registration_from_proto(message.registration)
    raise InvalidRequest("a member's message is empty: it is none that this version knows")


def gateway_message_to_proto(message: GatewayMessage) -> pb.GatewayMessage:
    """Return the protobuf form of the gateway's message."""
    if isinstance(message, Refused):
        return pb.GatewayMessage(refused=pb.Refused(reason=message.reason))
    if isinstance(message, Shutdown):
        return pb.GatewayMessage(shutdown=pb.Shutdown(reason=message.reason))
    if isinstance(message, View):
        view = pb.View(
            epoch=message.epoch,
            stages=[_member_to_proto(member) for member in message.stages],
            workers=[_member_to_proto(member) for member in message.workers],
        )
        if message.geometry is not None:
            view.geometry.CopyFrom(_geometry_to_proto(message.geometry))
        return pb.GatewayMessage(view=view)
    return pb.GatewayMessage(
        accepted=pb.Accepted(epoch=message.epoch, lease_seconds=message.lease_s)
    )


def gateway_message_from_proto(message: pb.GatewayMessage) -> GatewayMessage:
    """Return the gateway's message as data.

    Raises:
        InvalidRequest: it is empty or contradicts itself.
    """
    which = message.WhichOneof("message")
    if which == "accepted":
        accepted = message.accepted
        return Accepted(accepted.epoch, accepted.lease_seconds)
    if which == "refused":
        return Refused(message.refused.reason)
    if which == "shutdown":
        return Shutdown(message.shutdown.reason)
    if which == "view":
        view = message.view
        return View(
            view.epoch,
            tuple(_member_from_proto(member) for member in view.stages),
            tuple(_member_from_proto(member) for member in view.workers),
            _geometry_from_proto(view.geometry) if view.HasField("geometry") else None,
        )
    raise InvalidRequest("a gateway's message is empty: it is none that this version knows")


def _registration_from_proto(registration: pb.Registration) -> Registration:
    if not registration.name:
        raise InvalidRequest("a registration has no name")
    which = registration.WhichOneof("offer")
    offer: StageOffer | AttentionOffer
    if which == "stage":
        stage = registration.stage
        if not stage.first_layer < stage.last_layer <= stage.num_layers:
            raise InvalidRequest(
                f"stage {registration.name} offers layers [{stage.first_layer}, "
                f"{stage.last_layer}) of {stage.num_layers}"
            )
        offer = StageOffer(
            stage.first_layer,
            stage.last_layer,
            stage.num_layers,
            stage.model_digest,
            _dtype_from_proto(stage.dtype),
        )
    elif which == "attention":
        attention = registration.attention
        offer = AttentionOffer(
            attention.kv_memory_bytes,
            tuple(_dtype_from_proto(dtype) for dtype in attention.dtypes),
            attention.kernel,
        )
    else:
        raise InvalidRequest(f"the registration of {registration.name} offers nothing")
    result = Registration(
        name=registration.name,
        version=registration.version,
        address=registration.address,
        offer=offer,
        tcp_port=registration.tcp_port,
        instance=registration.instance,
        protocol_version=registration.protocol_version,
    )
    if _role_to_proto(result.role) != registration.role:
        raise InvalidRequest(f"the role of {registration.name} is not the one of its offer")
    return result


def _member_to_proto(member: Member) -> pb.Member:
    return pb.Member(
        role=_role_to_proto(member.role),
        name=member.name,
        address=member.address,
        first_layer=member.first_layer,
        last_layer=member.last_layer,
        epoch=member.epoch,
    )


def _member_from_proto(member: pb.Member) -> Member:
    role = _role_from_proto(member.role)
    return Member(
        role, member.name, member.address, member.first_layer, member.last_layer, member.epoch
    )


def _geometry_to_proto(geometry: KVGeometry) -> pb.Geometry:
    return pb.Geometry(
        num_layers=geometry.num_layers,
        num_query_heads=geometry.num_query_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        dtype=_dtype_to_proto(geometry.dtype),
        windows=[window or 0 for window in geometry.windows],
        page_tokens=geometry.page_tokens,
    )


def _geometry_from_proto(geometry: pb.Geometry) -> KVGeometry:
    sizes = (
        geometry.num_layers,
        geometry.num_query_heads,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.page_tokens,
    )
    if not all(sizes) or len(geometry.windows) != geometry.num_layers:
        raise InvalidRequest(
            f"a KV geometry has sizes {sizes} and {len(geometry.windows)} windows: every size "
            "must be positive, with one window a layer"
        )
    return KVGeometry(
        num_layers=geometry.num_layers,
        num_query_heads=geometry.num_query_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        dtype=_dtype_from_proto(geometry.dtype),
        windows=tuple(window or None for window in geometry.windows),
        page_tokens=geometry.page_tokens,
    )


def _dtype_to_proto(dtype: DType) -> Any:
    return int(dtype)  # the numbers of the two enums are the same; a test holds that


def _dtype_from_proto(value: int) -> DType:
    try:
        return DType(value)
    except ValueError as error:
        raise InvalidRequest(f"number format {value} is not one of 1 to {max(DType)}") from error


_ROLES: dict[Role, Any] = {Role.STAGE: pb.ROLE_STAGE, Role.ATTENTION: pb.ROLE_ATTENTION}


def _role_to_proto(role: Role) -> Any:
    return _ROLES[role]


def _role_from_proto(value: int) -> Role:
    for role, number in _ROLES.items():
        if number == value:
            return role
    raise InvalidRequest(f"role {value} is neither a stage nor an attention worker")
