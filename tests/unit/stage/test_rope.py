import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from glinthawk.models.config import Llama3Scaling, RopeConfig
from glinthawk.stage.rope import RopeTable, rotate

LLAMA3 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192
)


def test_llama3_rotation_is_that_of_transformers_at_long_distances() -> None:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    positions = torch.tensor([0, 1, 2, 100, 8191, 8192, 20000])
    heads = torch.randn(len(positions), 3, 64)
    cos, sin = LlamaRotaryEmbedding(config)(heads, positions[None])
    expected, _ = apply_rotary_pos_emb(heads[None], heads[None], cos, sin, unsqueeze_dim=2)

    rope = RopeConfig(theta=500000.0, llama3=LLAMA3)
    table = RopeTable(rope.inverse_frequencies(64), 20001, torch.device("cpu"))
    rotated = rotate(heads, *table.at(positions), out=torch.empty_like(heads))
    # A last bit of an inverse frequency turns into 20000 last bits of the angle.
    torch.testing.assert_close(rotated, expected[0], rtol=0, atol=5e-3)
    torch.testing.assert_close(rotated[:4], expected[0, :4], rtol=0, atol=5e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    table = RopeTable(RopeConfig(theta=1e4).inverse_frequencies(32), 64, torch.device("cpu"))
    q, k = torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, *table.at(torch.tensor([position])), out=torch.empty_like(x))

    torch.testing.assert_close(at(q, 17).norm(), q.norm())
    near = (at(q, 9) * at(k, 4)).sum()
    far = (at(q, 59) * at(k, 54)).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
