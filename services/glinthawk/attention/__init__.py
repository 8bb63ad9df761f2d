"""The memory tier: paged KV cache and decode attention. Knows no text, weights, or torch."""
