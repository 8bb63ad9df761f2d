"""How large the tiers are: what the configuration says, and what the model rules out."""

from glinthawk.config import BatchConfig, GatewayConfig, UpConfig
from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig
from glinthawk.gateway.lane_settings import choose_lanes
from glinthawk.gateway.roster import smallest_page_bytes
from glinthawk.gateway.tiers import TiersSettings
from glinthawk.models.config import ModelConfig


def longest_sequence(config: BatchConfig | GatewayConfig, model: ModelConfig) -> int:
    """Return the most tokens of prompt and output together."""
    return config.max_sequence_length or model.context_length


def asked_kv_dtype(config: BatchConfig | GatewayConfig) -> DType | None:
    """Return the format of KV, None where it follows that of stages which are not known yet."""
    asked = config.kv_dtype
    if asked == "auto" and isinstance(config, BatchConfig) and config.listen is None:
        asked = config.dtype
    return None if asked == "auto" else DType.parse(asked)


def build_tiers_settings(
    config: BatchConfig | GatewayConfig, model: ModelConfig, digest: str
) -> TiersSettings:
    """Return what the tiers are made of. digest: of the model's files.

    A gateway starts without workers, and survives the loss of members; a batch waits for all of
    them, and ends with the name of one that is lost.
    """
    num_workers = config.attention_workers if isinstance(config, BatchConfig) else 0
    return TiersSettings(
        model=model,
        model_digest=digest,
        num_stages=config.stages,
        num_workers=num_workers,
        kv_dtype=asked_kv_dtype(config),
        max_sequence_length=longest_sequence(config, model),
        lanes=choose_lanes(config),
        transport=config.transport,
        secret=config.secret,
        survives=not isinstance(config, BatchConfig),
    )


def check_sizes(config: BatchConfig | GatewayConfig, model: ModelConfig) -> None:
    """Refuse sizes that the model rules out, before anything is started.

    Raises:
        InvalidConfig: with the size and the limit.
    """
    longest = config.max_sequence_length
    if longest is not None and longest > model.context_length:
        raise InvalidConfig(
            f"--max-sequence-length {longest} is above the model's context of "
            f"{model.context_length} tokens; lower it"
        )
    model.split_layers(config.stages)
    _check_arena(config, model)


def _check_arena(config: BatchConfig | GatewayConfig, model: ModelConfig) -> None:
    """Refuse workers of our own that hold no page."""
    if not isinstance(config, UpConfig | BatchConfig):
        return
    if isinstance(config, BatchConfig) and config.listen is not None:
        return
    page_bytes = smallest_page_bytes(model, asked_kv_dtype(config))
    if config.kv_memory < page_bytes:
        raise InvalidConfig(
            f"--kv-memory {config.kv_memory} bytes do not hold one page of {page_bytes} bytes; "
            "give each worker more"
        )
