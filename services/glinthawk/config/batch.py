"""The configuration of the batch command: on tiers of its own, or at a gateway."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from glinthawk.config.fields import (
    APART_LANE_ROWS,
    DEFAULT_KV_MEMORY,
    DEFAULT_MODEL,
    SHARED_LANE_ROWS,
    AttentionWorkers,
    Dtype,
    FrameTransport,
    InputFile,
    KvDtype,
    KvMemory,
    Lanes,
    LeastLevel,
    LineFormat,
    MaxLaneRows,
    MaxSequenceLength,
    MetricsPort,
    MinLaneRows,
    Model,
    OutputFile,
    Overwrite,
    PrefillTokens,
    Revision,
    RoleThreads,
    SecretFile,
    Seed,
    Stages,
    StagesDevice,
)
from glinthawk.config.values import (
    Address,
    Config,
    Url,
    parse_address,
    read_credential,
    read_secret,
)

API_KEY_VARIABLE = "GLINTHAWK_API_KEY"
"""A key is no option: what stands on a command line, every user of the machine can read."""


class BatchConfig(Config):
    """The batch command: an input file, an output file, and the tiers between them."""

    input: InputFile
    output: OutputFile
    overwrite: Overwrite = False
    model: Model = DEFAULT_MODEL
    revision: Revision = None
    stages: Stages = 1
    attention_workers: AttentionWorkers = 1
    kv_memory: KvMemory = DEFAULT_KV_MEMORY
    threads: RoleThreads = None
    transport: FrameTransport = "auto"
    device: StagesDevice = "auto"
    dtype: Dtype = "auto"
    kv_dtype: KvDtype = "auto"
    max_sequence_length: MaxSequenceLength = None
    seed: Seed = 0
    listen: Address | None = Field(
        default=None, description="Start no processes: wait at host:port for stages and workers."
    )
    prefill_tokens: PrefillTokens = 1024
    max_lane_rows: MaxLaneRows = 256
    min_lane_rows: MinLaneRows | None = Field(
        default=None,
        description="Sequences that each lane must have before a worker opens another one; the "
        f"default is {APART_LANE_ROWS} with --listen, and {SHARED_LANE_ROWS} where all share this "
        "machine's cores.",
    )
    lanes: Lanes = None
    summary: Path | None = Field(
        default=None, description="Also write the closing figures to this file, as JSON."
    )
    metrics_port: MetricsPort = 0
    start_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds in which all stages and workers must be there."
    )
    secret_file: SecretFile = None
    log_level: LeastLevel = "warning"
    log_format: LineFormat = "console"

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

    input: InputFile
    output: OutputFile
    overwrite: Overwrite = False
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
