from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Transport(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSPORT_UNSPECIFIED: _ClassVar[Transport]
    TRANSPORT_TCP: _ClassVar[Transport]
    TRANSPORT_GRPC: _ClassVar[Transport]
TRANSPORT_UNSPECIFIED: Transport
TRANSPORT_TCP: Transport
TRANSPORT_GRPC: Transport

class OpenRequest(_message.Message):
    __slots__ = ("name", "role", "epoch", "transports", "protocol_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    epoch: int
    transports: _containers.RepeatedScalarFieldContainer[Transport]
    protocol_version: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., epoch: _Optional[int] = ..., transports: _Optional[_Iterable[_Union[Transport, str]]] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("transport", "ticket", "tcp_host", "tcp_port", "name")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TCP_HOST_FIELD_NUMBER: _ClassVar[int]
    TCP_PORT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    transport: Transport
    ticket: bytes
    tcp_host: str
    tcp_port: int
    name: str
    def __init__(self, transport: _Optional[_Union[Transport, str]] = ..., ticket: _Optional[bytes] = ..., tcp_host: _Optional[str] = ..., tcp_port: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
