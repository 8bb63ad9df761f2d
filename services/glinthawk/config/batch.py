"""The configuration of the batch command: on tiers of its own, or at a gateway."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from glinthawk.config.values import (
    Address,
    Config,
    LogFormat,
    LogLevel,
    NumberFormat,
    Port,
    Size,
    Transport,
    Url,
    parse_address,
    read_credential,
    read_secret,
)

API_KEY_VARIABLE = "GLINTHAWK_API_KEY"
"""A key is no option: what stands on a command line, every user of the machine can read."""


class BatchConfig(Config):
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
        return read_secret(self.secret_file)

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port of `listen`."""
        return None if self.listen is None else parse_address(self.listen)


class RemoteBatchConfig(Config):
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
        return read_credential(self.api_key_file, "api_key_file")
