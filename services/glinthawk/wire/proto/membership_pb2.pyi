from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_STAGE: _ClassVar[Role]
    ROLE_ATTENTION: _ClassVar[Role]

class NumberFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NUMBER_FORMAT_UNSPECIFIED: _ClassVar[NumberFormat]
    NUMBER_FORMAT_FLOAT32: _ClassVar[NumberFormat]
    NUMBER_FORMAT_FLOAT16: _ClassVar[NumberFormat]
    NUMBER_FORMAT_BFLOAT16: _ClassVar[NumberFormat]
ROLE_UNSPECIFIED: Role
ROLE_STAGE: Role
ROLE_ATTENTION: Role
NUMBER_FORMAT_UNSPECIFIED: NumberFormat
NUMBER_FORMAT_FLOAT32: NumberFormat
NUMBER_FORMAT_FLOAT16: NumberFormat
NUMBER_FORMAT_BFLOAT16: NumberFormat

class PeerMessage(_message.Message):
    __slots__ = ("registration", "heartbeat", "leaving")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    registration: Registration
    heartbeat: Heartbeat
    leaving: Leaving
    def __init__(self, registration: _Optional[_Union[Registration, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class GatewayMessage(_message.Message):
    __slots__ = ("accepted", "refused", "view", "shutdown")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    refused: Refused
    view: View
    shutdown: Shutdown
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., view: _Optional[_Union[View, _Mapping]] = ..., shutdown: _Optional[_Union[Shutdown, _Mapping]] = ...) -> None: ...

class StageOffer(_message.Message):
    __slots__ = ("first_layer", "last_layer", "num_layers", "model_digest", "dtype")
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    first_layer: int
    last_layer: int
    num_layers: int
    model_digest: str
    dtype: NumberFormat
    def __init__(self, first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., model_digest: _Optional[str] = ..., dtype: _Optional[_Union[NumberFormat, str]] = ...) -> None: ...

class AttentionOffer(_message.Message):
    __slots__ = ("kv_memory_bytes", "dtypes", "kernel")
    KV_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    kv_memory_bytes: int
    dtypes: _containers.RepeatedScalarFieldContainer[NumberFormat]
    kernel: str
    def __init__(self, kv_memory_bytes: _Optional[int] = ..., dtypes: _Optional[_Iterable[_Union[NumberFormat, str]]] = ..., kernel: _Optional[str] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("role", "name", "version", "protocol_version", "address", "tcp_port", "instance", "stage", "attention")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TCP_PORT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    role: Role
    name: str
    version: str
    protocol_version: int
    address: str
    tcp_port: int
    instance: str
    stage: StageOffer
    attention: AttentionOffer
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., address: _Optional[str] = ..., tcp_port: _Optional[int] = ..., instance: _Optional[str] = ..., stage: _Optional[_Union[StageOffer, _Mapping]] = ..., attention: _Optional[_Union[AttentionOffer, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("stats", "drain_seconds")
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stats: _containers.ScalarMap[str, float]
    drain_seconds: float
    def __init__(self, stats: _Optional[_Mapping[str, float]] = ..., drain_seconds: _Optional[float] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Geometry(_message.Message):
    __slots__ = ("num_layers", "num_query_heads", "num_kv_heads", "head_dim", "dtype", "windows", "page_tokens")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUERY_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: NumberFormat
    windows: _containers.RepeatedScalarFieldContainer[int]
    page_tokens: int
    def __init__(self, num_layers: _Optional[int] = ..., num_query_heads: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype: _Optional[_Union[NumberFormat, str]] = ..., windows: _Optional[_Iterable[int]] = ..., page_tokens: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("epoch", "lease_seconds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_seconds: float
    def __init__(self, epoch: _Optional[int] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("role", "name", "address", "first_layer", "last_layer", "epoch")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    role: Role
    name: str
    address: str
    first_layer: int
    last_layer: int
    epoch: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("epoch", "stages", "workers", "geometry")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    stages: _containers.RepeatedCompositeFieldContainer[Member]
    workers: _containers.RepeatedCompositeFieldContainer[Member]
    geometry: Geometry
    def __init__(self, epoch: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ...) -> None: ...

class Shutdown(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
