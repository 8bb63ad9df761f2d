"""Settings that several processes have: each is bounded and described here, once.

A configuration is composed of them. It gives each its name, which is the same everywhere, and its
default, which may differ:

    model: Model = "smollm2-135m"
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from glinthawk.config.values import LogFormat, LogLevel, NumberFormat, Port, Size, Transport

# --- the model

Model = Annotated[
    str,
    Field(description="A folder in Hugging Face layout, a .gguf file, a hub id, or smollm2-135m."),
]
DEFAULT_MODEL = "smollm2-135m"

Revision = Annotated[str | None, Field(description="Branch, tag or commit of a hub id.")]

MaxSequenceLength = Annotated[
    int | None,
    Field(
        ge=2,
        description="Tokens of prompt and output together; the default is the model's context.",
    ),
]

Seed = Annotated[
    int,
    Field(
        ge=0,
        lt=1 << 63,
        description="From which requests without a seed of their own get theirs.",
    ),
]

# --- the tiers

Stages = Annotated[int, Field(ge=1, le=1024, description="Stages of the GPU tier.")]

AttentionWorkers = Annotated[
    int, Field(ge=1, le=4096, description="Attention workers of the memory tier.")
]

KvMemory = Annotated[Size, Field(description="KV memory of each worker, in bytes or like 96GiB.")]
DEFAULT_KV_MEMORY = 1 << 30

KvDtype = Annotated[
    NumberFormat, Field(description="Format of the KV cache; auto is that of the activations.")
]

RoleThreads = Annotated[
    str | None,
    Field(
        description="Threads of each process: a number, or by role like "
        "stage=2,attention=1. The default shares out the cores.",
    ),
]

Device = Literal["auto", "cpu", "cuda"]
StagesDevice = Annotated[Device, Field(description="Of the stages.")]

Dtype = Annotated[
    NumberFormat,
    Field(
        description="Format of weights and activations; auto is float16 on a "
        "GPU, bfloat16 on a CPU that multiplies it natively, else float32.",
    ),
]

FrameTransport = Annotated[
    Transport, Field(description="Of frames: tcp, grpc, or auto (TCP where it passes).")
]

# --- lanes

PrefillTokens = Annotated[
    int, Field(ge=1, le=1 << 20, description="Prompt tokens that one prefill step takes.")
]

MaxLaneRows = Annotated[int, Field(ge=1, le=65536, description="Sequences of one lane.")]

APART_LANE_ROWS = 16
SHARED_LANE_ROWS = 256
"""Defaults of `MinLaneRows`: where members have machines of their own, and where they share one."""

MinLaneRows = Annotated[
    int,
    Field(
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    ),
]

Lanes = Annotated[
    int | None,
    Field(ge=2, le=4096, description="Lanes in flight; the default is two a stage."),
]

# --- the process

MetricsPort = Annotated[Port, Field(description="Port of /metrics; 0 takes a free one.")]

SecretFile = Annotated[
    Path | None,
    Field(description="File with the cluster's shared secret; none without it."),
]

LeastLevel = Annotated[LogLevel, Field(description="Least severe line that is logged.")]
LineFormat = Annotated[LogFormat, Field(description="Lines for people or machines.")]

# --- the batch command, here and at a gateway

InputFile = Annotated[Path, Field(description="OpenAI batch file, JSON lines.")]
OutputFile = Annotated[
    Path, Field(description="Where the answers go, one line for each input line.")
]
Overwrite = Annotated[bool, Field(description="Begin anew, whatever the output holds.")]
