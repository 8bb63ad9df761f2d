from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SendPagesRequest(_message.Message):
    __slots__ = ("number", "sequence", "num_tokens", "source_epoch", "target", "target_address", "target_epoch")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TARGET_EPOCH_FIELD_NUMBER: _ClassVar[int]
    number: int
    sequence: int
    num_tokens: int
    source_epoch: int
    target: str
    target_address: str
    target_epoch: int
    def __init__(self, number: _Optional[int] = ..., sequence: _Optional[int] = ..., num_tokens: _Optional[int] = ..., source_epoch: _Optional[int] = ..., target: _Optional[str] = ..., target_address: _Optional[str] = ..., target_epoch: _Optional[int] = ...) -> None: ...

class SendPagesReply(_message.Message):
    __slots__ = ("num_pages", "num_bytes")
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_pages: int
    num_bytes: int
    def __init__(self, num_pages: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...
