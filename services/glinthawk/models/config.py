"""The shape of a model as frozen numbers, whatever file they came from. No torch.

Everything a `ModelConfig` can express is computed; what it cannot express is refused by name
where it is read (`hf_config`, `gguf_config`).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import MAX_GROUP, MAX_HEAD_DIM, PAGE_TOKENS, KVGeometry
from glinthawk.errors import InvalidConfig, UnsupportedModel

_COUNTS = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_query_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "context_length",
)


@dataclass(frozen=True)
class Llama3Scaling:
    """Rope scaling of Llama 3.1 and later: wavelengths above original_context_length /
    low_freq_factor are stretched by `factor`, those below original_context_length /
    high_freq_factor are left, and between them the two are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding over all of head_dim (halves rotated, not pairs).

    linear_factor: positions are divided by it (1 is off). llama3: its scaling, or None.
    frequency_factors: [head_dim / 2] divisors of the frequencies, as GGUF files carry them
    for llama3 scaling, or None.
    """

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None
    frequency_factors: tuple[float, ...] | None = None

    def inverse_frequencies(self, head_dim: int) -> npt.NDArray[np.float32]:
        """Return radians per position, [head_dim / 2].

        Checked against transformers' ROPE_INIT_FUNCTIONS, which work in float32 too.
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        powers: npt.NDArray[np.float32] = np.float_power(self.theta, exponents).astype(np.float32)
        frequencies: npt.NDArray[np.float32] = np.reciprocal(powers)
        if self.llama3 is not None:
            frequencies = _scale_llama3(frequencies, self.llama3)
        if self.frequency_factors is not None:
            factors: npt.NDArray[np.float32] = np.array(self.frequency_factors, np.float32)
            frequencies = frequencies / factors
        return frequencies / np.float32(self.linear_factor)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family.

    windows[l]: sliding window of layer l in tokens, the token itself included, or None.
    qkv_bias, output_bias, mlp_bias: whether those projections have biases. qk_norm: RMS norm
    over head_dim of each query and key head, before rope. checkpoint_dtype: the format that
    the checkpoint says it was saved in, None if it does not say or is quantized.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    checkpoint_dtype: DType | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value < 1:
                raise InvalidConfig(f"the model's {name} is {value}: it must be at least 1")
        if self.num_query_heads % self.num_kv_heads:
            raise InvalidConfig(
                f"{self.num_query_heads} query heads are not a multiple of {self.num_kv_heads} "
                "KV heads"
            )
        if self.head_dim % 8 or self.head_dim > MAX_HEAD_DIM:
            raise UnsupportedModel(
                f"head_dim {self.head_dim} is not computed: attention takes multiples of 8 up to "
                f"{MAX_HEAD_DIM}"
            )
        if self.num_query_heads // self.num_kv_heads > MAX_GROUP:
            raise UnsupportedModel(
                f"{self.num_query_heads} query heads for {self.num_kv_heads} KV heads are not "
                f"computed: attention takes at most {MAX_GROUP} for each"
            )
        if len(self.windows) != self.num_layers:
            raise InvalidConfig(f"{len(self.windows)} windows for {self.num_layers} layers")

    @property
    def query_size(self) -> int:
        """Elements of one row of q, and of attention's output."""
        return self.num_query_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of one row of k, and of v."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Elements of one row of q, k and v together."""
        return self.query_size + 2 * self.kv_size

    @property
    def attention_scale(self) -> float:
        """The factor on q . k."""
        return 1.0 / math.sqrt(self.head_dim)

    def kv_geometry(self, kv_dtype: DType, *, page_tokens: int = PAGE_TOKENS) -> KVGeometry:
        """Return the shape of this model's KV cache in `kv_dtype`."""
        return KVGeometry(
            num_layers=self.num_layers,
            num_query_heads=self.num_query_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=kv_dtype,
            windows=self.windows,
            page_tokens=page_tokens,
        )

    def split_layers(self, num_stages: int) -> list[tuple[int, int]]:
        """Return [first, last) of each stage, as even as whole layers allow.

        The last stage also multiplies by the output head, so the longer runs come first.

        Raises:
            InvalidConfig: there are more stages than layers, or none.
        """
        if not 1 <= num_stages <= self.num_layers:
            raise InvalidConfig(
                f"{num_stages} stages were asked for; the model has {self.num_layers} layers, so "
                f"1 to {self.num_layers} stages are possible"
            )
        each, longer = divmod(self.num_layers, num_stages)
        runs = []
        first = 0
        for stage in range(num_stages):
            last = first + each + (1 if stage < longer else 0)
            runs.append((first, last))
            first = last
        return runs


def _scale_llama3(
    frequencies: npt.NDArray[np.float32], scaling: Llama3Scaling
) -> npt.NDArray[np.float32]:
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    stretched = frequencies / np.float32(scaling.factor)
    share = (scaling.original_context_length / wavelengths - low) / (high - low)
    blended = (1 - share) * stretched + share * frequencies
    result = np.where(wavelengths > scaling.original_context_length / low, stretched, frequencies)
    is_between = (wavelengths <= scaling.original_context_length / low) & (
        wavelengths >= scaling.original_context_length / high
    )
    return np.where(is_between, blended, result).astype(np.float32)
