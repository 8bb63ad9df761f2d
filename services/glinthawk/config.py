"""The configuration of each process: one frozen model a process, composed of the parts they share.

Values come from defaults, then a YAML file (`--config`), then the environment, then the command
line; `load_config` merges them once, for `cli.py`. The name of a field is its name everywhere: in
the file, as `GLINTHAWK_<FIELD>` or `GLINTHAWK_<ROLE>_<FIELD>`, and as `--field` for the command.
"""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from glinthawk.errors import InvalidConfig

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)


def parse_size(value: Any) -> Any:
    """Return the bytes of a size such as ``96GiB``, ``512Mi``, ``2G`` or 1048576.

    Raises:
        ValueError: it is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no size; write it like 512MiB, 96GiB or 1048576")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_address(value: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        ValueError: it is none.
    """
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{value!r} is no address; write it like 10.0.0.5:7070")
    return host.strip("[]"), int(port)


def _check_address(value: str | None) -> str | None:
    if value is not None:
        parse_address(value)
    return value


def _default_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _split_names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no URL; write it like http://10.0.0.5:8000")
    return value.rstrip("/").removesuffix("/v1")


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Address = Annotated[str, BeforeValidator(_check_address)]
Port = Annotated[int, Field(ge=0, le=65535)]
Url = Annotated[str, AfterValidator(_check_url)]
Transport = Literal["auto", "tcp", "grpc"]
NumberFormat = Literal["auto", "float16", "bfloat16", "float32"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class PeerConfig(_Config):
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
    metrics_port: Port = Field(default=0, description="Port of /metrics; 0 takes a free one.")
    advertise_host: str | None = Field(
        default=None,
        description="Host name under which others reach this process; the default "
        "is the interface that it listens on.",
    )
    transport: Transport = Field(
        default="auto", description="Of frames: tcp, grpc, or auto (TCP where it passes)."
    )
    secret_file: Path | None = Field(
        default=None, description="File with the cluster's shared secret; none without it."
    )
    exit_with_parent: bool = Field(
        default=False,
        description="End when the process that started this one ends, and when "
        "the gateway does. Without it, wait for the next gateway.",
    )
    log_level: LogLevel = Field(default="info", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="console", description="Lines for people or machines.")

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
        return _read_secret(self.secret_file)


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

    model: str = Field(
        default="smollm2-135m",
        description="A folder in Hugging Face layout, a .gguf file, a hub id, or smollm2-135m.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    stage: int = Field(default=0, ge=0, description="Which stage this is, counted from 0.")
    num_stages: int = Field(default=1, ge=1, description="Stages among which layers are split.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to compute.")
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of weights and activations; auto is float16 on a "
        "GPU, bfloat16 on a CPU that multiplies it natively, else float32.",
    )
    threads: int = Field(
        default_factory=count_cores, ge=1, le=1024, description="Threads of matrix products."
    )
    max_rows: int = Field(
        default=1024, ge=1, le=65536, description="Rows of all lanes that one segment merges."
    )


class BatchConfig(_Config):
    """The batch command: an input file, an output file, and the tiers between them."""

    input: Path = Field(description="OpenAI batch file, JSON lines.")
    output: Path = Field(description="Where the answers go, one line for each input line.")
    overwrite: bool = Field(default=False, description="Begin anew, whatever the output holds.")
    model: str = Field(
        default="smollm2-135m",
        description="A folder in Hugging Face layout, a .gguf file, a hub id, or smollm2-135m.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    stages: int = Field(default=1, ge=1, le=1024, description="Stages of the GPU tier.")
    attention_workers: int = Field(
        default=1, ge=1, le=4096, description="Attention workers of the memory tier."
    )
    kv_memory: Size = Field(
        default=1 << 30, description="KV memory of each worker, in bytes or like 96GiB."
    )
    threads: str | None = Field(
        default=None,
        description="Threads of each process: a number, or by role like "
        "stage=2,attention=1. The default shares out the cores.",
    )
    transport: Transport = Field(
        default="auto", description="Of frames: tcp, grpc, or auto (TCP where it passes)."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Of the stages.")
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of weights and activations; auto is float16 on a "
        "GPU, bfloat16 on a CPU that multiplies it natively, else float32.",
    )
    kv_dtype: NumberFormat = Field(
        default="auto", description="Format of the KV cache; auto is that of the activations."
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of prompt and output together; the default is the model's context.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="From which requests without a seed of their own get theirs.",
    )
    listen: Address | None = Field(
        default=None, description="Start no processes: wait at host:port for stages and workers."
    )
    prefill_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="Prompt tokens that one prefill step takes."
    )
    max_lane_rows: int = Field(default=256, ge=1, le=65536, description="Sequences of one lane.")
    min_lane_rows: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one; the "
        "default is 16 with --listen, and 256 where all share this machine's cores.",
    )
    lanes: int | None = Field(
        default=None, ge=2, le=4096, description="Lanes in flight; the default is two a stage."
    )
    summary: Path | None = Field(
        default=None, description="Also write the closing figures to this file, as JSON."
    )
    metrics_port: Port = Field(default=0, description="Port of /metrics; 0 takes a free one.")
    start_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds in which all stages and workers must be there."
    )
    secret_file: Path | None = Field(
        default=None, description="File with the cluster's shared secret; none without it."
    )
    log_level: LogLevel = Field(default="warning", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="console", description="Lines for people or machines.")

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return _read_secret(self.secret_file)

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port of `listen`."""
        return None if self.listen is None else parse_address(self.listen)


class GatewayConfig(_Config):
    """The gateway: the API, the jobs behind it, and the tiers that register with it."""

    host: str = Field(default="127.0.0.1", description="Interface of the HTTP API.")
    port: Port = Field(default=8000, description="Port of the HTTP API; 0 takes a free one.")
    data_dir: Path = Field(
        default=Path("glinthawk-data"),
        description="Folder of the store: files, jobs and results; made where it is missing.",
    )
    listen: Address = Field(
        default="127.0.0.1:7070",
        description="Where stages and workers register, and gRPC clients call.",
    )
    control_port: Port = Field(
        default=7071, description="Port of the control API in JSON; 0 takes a free one."
    )
    model: str = Field(
        default="smollm2-135m",
        description="A folder in Hugging Face layout, a .gguf file, a hub id, or smollm2-135m.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    served_model_name: Names = Field(
        default=(),
        description="Names under which the model is served, separated by commas; the default is "
        "the value of model.",
    )
    stages: int = Field(default=1, ge=1, le=1024, description="Stages of the GPU tier.")
    kv_dtype: NumberFormat = Field(
        default="auto", description="Format of the KV cache; auto is that of the activations."
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of prompt and output together; the default is the model's context.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="From which requests without a seed of their own get theirs.",
    )
    transport: Transport = Field(
        default="auto", description="Of frames: tcp, grpc, or auto (TCP where it passes)."
    )
    prefill_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="Prompt tokens that one prefill step takes."
    )
    max_lane_rows: int = Field(default=256, ge=1, le=65536, description="Sequences of one lane.")
    min_lane_rows: int = Field(
        default=16,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    )
    lanes: int | None = Field(
        default=None, ge=2, le=4096, description="Lanes in flight; the default is two a stage."
    )
    secret_file: Path | None = Field(
        default=None, description="File with the cluster's shared secret; none without it."
    )
    keys: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether API keys are asked for; auto is on, except on loopback. Off, the API "
        "may listen on loopback only.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="File of further API keys, a line `name:sha256` each; read when it changes.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="Certificate chain of the HTTP API, PEM."
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate, PEM.")
    max_body_bytes: Size = Field(
        default=16 << 20, description="Largest body of a request that is no upload."
    )
    max_file_bytes: Size = Field(default=8 << 30, description="Largest file that is kept.")
    max_line_bytes: Size = Field(default=16 << 20, description="Longest line of a batch file.")
    max_key_requests: int = Field(
        default=256, ge=1, description="Requests of one key that are open at a time."
    )
    max_key_tokens: int = Field(
        default=1 << 20, ge=1, description="Prompt and output tokens of one key that are open."
    )
    metrics_port: Port = Field(default=0, description="Port of /metrics; 0 takes a free one.")
    log_level: LogLevel = Field(default="info", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="console", description="Lines for people or machines.")

    @model_validator(mode="after")
    def _check_guarded(self) -> Self:
        if self.keys == "off" and self.host not in _LOOPBACK:
            raise ValueError(
                f"keys are off and host is {self.host}: anyone who reaches it could use it; turn "
                "keys on, or listen on 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both or none")
        return self

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return _read_secret(self.secret_file)

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return parse_address(self.listen)

    @property
    def asks_for_keys(self) -> bool:
        """Whether the HTTP API asks for keys."""
        return self.keys == "on" or (self.keys == "auto" and self.host not in _LOOPBACK)

    @property
    def asks_for_grpc_keys(self) -> bool:
        """Whether gRPC asks users for keys: also where only the address of gRPC is reached from
        elsewhere."""
        return self.asks_for_keys or self.listen_address[0] not in _LOOPBACK

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a request may give as its model."""
        return self.served_model_name or (self.model,)


class UpConfig(GatewayConfig):
    """A gateway with stages and attention workers of its own, on this machine."""

    min_lane_rows: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    )
    attention_workers: int = Field(
        default=1, ge=1, le=4096, description="Attention workers of the memory tier."
    )
    kv_memory: Size = Field(
        default=1 << 30, description="KV memory of each worker, in bytes or like 96GiB."
    )
    threads: str | None = Field(
        default=None,
        description="Threads of each process: a number, or by role like "
        "stage=2,attention=1. The default shares out the cores.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Of the stages.")
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of weights and activations; auto is float16 on a "
        "GPU, bfloat16 on a CPU that multiplies it natively, else float32.",
    )
    log_level: LogLevel = Field(default="warning", description="Least severe line that is logged.")


class RemoteBatchConfig(_Config):
    """The batch command at a gateway: who runs the file, and how long it may take."""

    input: Path = Field(description="OpenAI batch file, JSON lines.")
    output: Path = Field(description="Where the answers go, one line for each input line.")
    overwrite: bool = Field(default=False, description="Begin anew, whatever the output holds.")
    gateway: Url = Field(
        description="URL of a gateway that runs the file as a batch, like http://10.0.0.5:8000; "
        "no model is loaded here."
    )
    api_key_file: Path | None = Field(
        default=None,
        description="With --gateway: file with the API key; without it GLINTHAWK_API_KEY of the "
        "environment is sent, if it is set.",
    )
    completion_window: str = Field(
        default="24h",
        pattern="^[1-9][0-9]{0,3}[hd]$",
        description="With --gateway: hours or days, like 24h or 7d, after which lines without an "
        "answer expire.",
    )
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="With --gateway: shares of the work; a higher one gets more.",
    )
    gateway_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="With --gateway: seconds for which it may be away before the command gives up.",
    )

    def api_key(self, environment: Mapping[str, str]) -> str | None:
        """Return the key to send: from its file, or from the environment."""
        if self.api_key_file is None:
            return environment.get(API_KEY_VARIABLE) or None
        return _read_credential(self.api_key_file, "api_key_file")


class ControlConfig(_Config):
    """A command that speaks to the control API of a gateway."""

    control: Url = Field(
        default="http://127.0.0.1:7071",
        description="URL of the gateway's control API; its port is the gateway's --control-port.",
    )
    secret_file: Path | None = Field(
        default=None, description="File with the cluster's shared secret; none without it."
    )

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return _read_secret(self.secret_file)


class KeysConfig(_Config):
    """A command about the API keys of a gateway."""

    data_dir: Path = Field(
        default=Path("glinthawk-data"), description="Folder of the gateway's store."
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)

ENVIRONMENT_PREFIX = "GLINTHAWK_"

API_KEY_VARIABLE = "GLINTHAWK_API_KEY"
"""A key is no option: what stands on a command line, every user of the machine can read."""


def load_config(
    kind: type[ConfigT],
    role: str,
    *,
    file: Path | None,
    environment: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> ConfigT:
    """Merge a YAML file, the environment and the command line into the config of `role`.

    Later ones win. `GLINTHAWK_STAGE_THREADS` wins over `GLINTHAWK_THREADS` for the role stage.

    Raises:
        InvalidConfig: a value is unknown or wrong; the message names all of them, their limits
            and where they came from.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in kind.model_fields:
        for name in (field, f"{role}_{field}"):
            variable = ENVIRONMENT_PREFIX + name.upper()
            if variable in environment:
                values[field] = environment[variable]
                sources[field] = variable
    for name, value in ({} if file is None else _read_file(file)).items():
        if name not in values:
            values[name] = value
            sources[name] = f"{name} in {file}"
    for name, value in arguments.items():
        if value is not None:
            values[name] = value
            sources[name] = "--" + name.replace("_", "-")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InvalidConfig(_describe(error, sources)) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"config file {path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidConfig(f"config file {path} holds no mapping of names to values")
    return {str(name): value for name, value in content.items()}


def _describe(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Return one line for each wrong value: where it stands, what it is, what is wrong."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)  # about fields together, which it names
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing: give it as --{name.replace('_', '-')}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{sources.get(name, name)}: there is no such setting; see --help")
        else:
            lines.append(f"{sources.get(name, name)} = {problem['input']!r}: {message}")
    return "; ".join(lines)


def load_batch_config(
    *, file: Path | None, environment: Mapping[str, str], arguments: Mapping[str, Any]
) -> BatchConfig | RemoteBatchConfig:
    """Return the configuration of the batch command; with a gateway, that of a remote run.

    Raises:
        InvalidConfig: as `load_config`, and if options of the two do not go together.
    """
    given = {name for name, value in arguments.items() if value is not None}
    is_remote = "gateway" in given or "GLINTHAWK_BATCH_GATEWAY" in environment
    mine, other = RemoteBatchConfig.model_fields, BatchConfig.model_fields
    if not is_remote:
        mine, other = other, mine
    stray = sorted("--" + name.replace("_", "-") for name in given - set(mine) if name in other)
    if stray and is_remote:
        raise InvalidConfig(
            f"{', '.join(stray)}: with --gateway, model and tiers are the gateway's; leave "
            "them out, or leave --gateway out to run the file here"
        )
    if stray:
        raise InvalidConfig(f"{', '.join(stray)}: only together with --gateway; give it too")
    chosen = {name: value for name, value in arguments.items() if name in mine}
    load: type[BatchConfig | RemoteBatchConfig] = RemoteBatchConfig if is_remote else BatchConfig
    return load_config(load, "batch", file=file, environment=environment, arguments=chosen)


def _read_secret(path: Path | None) -> str | None:
    return None if path is None else _read_credential(path, "secret_file")


def _read_credential(path: Path, setting: str) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{setting} {path} cannot be read: {error}") from error
    if not secret or not secret.isascii() or not secret.isprintable():
        raise InvalidConfig(
            f"{setting} {path} holds {len(secret)} characters that make no secret: write one "
            "line of printable ASCII into it, such as 'openssl rand -hex 32' prints"
        )
    return secret
