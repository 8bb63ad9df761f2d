"""What a stage takes of its device, from the shape of the model alone.

An estimate on the safe side, made before anything is loaded: a stage that does not fit is refused
with the calculation, in place of an allocation that fails minutes later.
"""

from dataclasses import dataclass

from glinthawk.errors import InvalidConfig
from glinthawk.models.config import ModelConfig

RUNTIME_BYTES = 512 << 20
"""What a GPU's runtime takes by itself: context, kernels, the allocator's rounding."""

DEFAULT_ROWS = 1024
_FLOAT32 = 4


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the device: weights, activations of a full segment, logits, runtime."""

    weights: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.logits + self.runtime

    def __str__(self) -> str:
        return (
            f"{_show(self.weights)} weights + {_show(self.activations)} activations + "
            f"{_show(self.logits)} logits + {_show(self.runtime)} runtime = {_show(self.total)}"
        )


def estimate_stage_memory(
    config: ModelConfig, layers: tuple[int, int], *, itemsize: int, rows: int = DEFAULT_ROWS
) -> StageMemory:
    """Return what a stage with the layers [first, last) takes with `rows` rows of a segment.

    itemsize: bytes of a weight.
    """
    first, last = layers
    hidden, inter = config.hidden_size, config.intermediate_size
    per_layer = hidden * (config.qkv_size + config.query_size + 3 * inter)
    table = config.vocab_size * hidden
    is_last = last == config.num_layers
    num_tables = (first == 0) + is_last
    if config.tied_embeddings:
        num_tables = min(num_tables, 1)
    row = 3 * hidden * _FLOAT32 + (config.qkv_size + config.query_size + 3 * inter) * itemsize
    return StageMemory(
        weights=((last - first) * per_layer + num_tables * table) * itemsize,
        activations=rows * row,
        logits=3 * rows * config.vocab_size * _FLOAT32 if is_last else 0,
        runtime=RUNTIME_BYTES,
    )


def check_stage_fits(
    config: ModelConfig,
    stage: int,
    num_stages: int,
    *,
    device_memory: int,
    itemsize: int,
    rows: int = DEFAULT_ROWS,
) -> None:
    """Refuse a stage that does not fit its device.

    Raises:
        InvalidConfig: it does not; the message has the calculation and how many stages would.
    """
    runs = config.split_layers(num_stages)
    memory = estimate_stage_memory(config, runs[stage], itemsize=itemsize, rows=rows)
    if memory.total <= device_memory:
        return
    enough = next(
        (
            count
            for count in range(num_stages + 1, config.num_layers + 1)
            if _fits(config, count, device_memory, itemsize, rows)
        ),
        None,
    )
    first, last = runs[stage]
    advice = "no number of stages fits" if enough is None else f"{enough} stages fit"
    raise InvalidConfig(
        f"stage {stage} of {num_stages} does not fit its device: layers {first}-{last - 1} take "
        f"{memory}, and device_memory is {_show(device_memory)}; {advice}, or use a device with "
        "more memory, or fewer max_rows"
    )


def _fits(
    config: ModelConfig, num_stages: int, device_memory: int, itemsize: int, rows: int
) -> bool:
    runs = config.split_layers(num_stages)
    memories = (estimate_stage_memory(config, run, itemsize=itemsize, rows=rows) for run in runs)
    return all(memory.total <= device_memory for memory in memories)


def _show(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
