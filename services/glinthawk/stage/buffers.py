"""Memory of a stage that its segments use again and again."""

import torch


class Buffers:
    """Memory that segments use again and again, by name; each grows to the largest use."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Return the buffer `name` as a contiguous tensor; its old content is lost."""
        size = shape[0] * shape[1]
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype is not dtype:
            memory = torch.empty(size, dtype=dtype, device=self._device)
            self._memory[name] = memory
        return memory[:size].view(shape)
