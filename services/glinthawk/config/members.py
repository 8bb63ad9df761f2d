"""The configuration of stages and attention workers, the members of a gateway."""

import os
import socket
from typing import Literal, Self

from pydantic import Field, model_validator

from glinthawk.config.fields import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    FrameTransport,
    LeastLevel,
    LineFormat,
    MetricsPort,
    Model,
    Revision,
    SecretFile,
)
from glinthawk.config.machine import count_cores
from glinthawk.config.values import (
    Address,
    Config,
    Port,
    Size,
    read_secret,
)


def _default_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class PeerConfig(Config):
    """What a stage and an attention worker have in common: who they are and where they listen."""

    name: str = Field(
        default_factory=_default_name,
        min_length=1,
        max_length=253,
        description="Identity of this process; no two members of a gateway share one.",
    )
    gateway: Address = Field(
        default="127.0.0.1:7070", description="Address (host:port) of the gateway to register with."
    )
    host: str = Field(default="127.0.0.1", description="Interface to listen on.")
    grpc_port: Port = Field(default=0, description="Port of gRPC; 0 takes a free one.")
    data_port: Port = Field(default=0, description="TCP port of frames; 0 takes a free one.")
    metrics_port: MetricsPort = 0
    advertise_host: str | None = Field(
        default=None,
        description="Host name under which others reach this process; the default "
        "is the interface that it listens on.",
    )
    transport: FrameTransport = "auto"
    secret_file: SecretFile = None
    exit_with_parent: bool = Field(
        default=False,
        description="End when the process that started this one ends, and when "
        "the gateway does. Without it, wait for the next gateway.",
    )
    log_level: LeastLevel = "info"
    log_format: LineFormat = "console"

    @model_validator(mode="after")
    def _check_reachable(self) -> Self:
        if self.host in ("0.0.0.0", "::") and self.advertise_host is None:
            raise ValueError(
                f"host {self.host} is every interface, which is no address that others can dial: "
                "give advertise_host too"
            )
        return self

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return read_secret(self.secret_file)


class AttentionConfig(PeerConfig):
    """An attention worker: KV cache and attention on a plain CPU machine."""

    kv_memory: Size = Field(
        default=1 << 30, description="Memory for KV pages, in bytes or like 96GiB."
    )
    threads: int = Field(
        default_factory=count_cores, ge=1, le=1024, description="Threads that attend."
    )
    backend: Literal["auto", "kernel", "reference"] = Field(
        default="auto", description="The compiled kernel, the slow reference, or what is there."
    )
    isa: Literal["avx512", "avx2", "portable"] | None = Field(
        default=None, description="Instruction set of the kernel; the default is the best there."
    )
    drain_timeout_s: float = Field(
        default=30.0,
        ge=0,
        le=7 * 24 * 3600,
        description="Seconds that it stays, when a signal asks it to end, for the sequences that "
        "it holds; what is not done then is computed again elsewhere. A second signal ends it.",
    )


class StageConfig(PeerConfig):
    """A stage: the weights of a run of layers, and everything but attention over the cache."""

    model: Model = DEFAULT_MODEL
    revision: Revision = None
    stage: int = Field(default=0, ge=0, description="Which stage this is, counted from 0.")
    num_stages: int = Field(default=1, ge=1, description="Stages among which layers are split.")
    device: Device = Field(default="auto", description="Where to compute.")
    dtype: Dtype = "auto"
    threads: int = Field(
        default_factory=count_cores, ge=1, le=1024, description="Threads of matrix products."
    )
    device_memory: Size | None = Field(
        default=None,
        description="Memory that it may fill on its device, in bytes or like 16GiB; a stage that "
        "does not fit is refused with the calculation. The default is what the device has.",
    )
    max_rows: int = Field(
        default=1024, ge=1, le=65536, description="Rows of all lanes that one segment merges."
    )
