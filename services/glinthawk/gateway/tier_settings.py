"""How large the tiers of a gateway are: its configuration, and what the model rules out."""

from glinthawk.config import GatewayConfig
from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig
from glinthawk.gateway.lane_settings import choose_lanes
from glinthawk.gateway.tiers import TiersSettings
from glinthawk.models.config import ModelConfig


def longest_sequence(config: GatewayConfig, model: ModelConfig) -> int:
    """Return the most tokens of prompt and output together."""
    return config.max_sequence_length or model.context_length


def build_tiers_settings(config: GatewayConfig, model: ModelConfig, digest: str) -> TiersSettings:
    """Return what the tiers are made of. digest: of the model's files."""
    return TiersSettings(
        model=model,
        model_digest=digest,
        num_stages=config.stages,
        num_workers=0,
        kv_dtype=None if config.kv_dtype == "auto" else DType.parse(config.kv_dtype),
        max_sequence_length=longest_sequence(config, model),
        lanes=choose_lanes(config),
        transport=config.transport,
        secret=config.secret,
        survives=True,
    )


def check_sizes(config: GatewayConfig, model: ModelConfig) -> None:
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
