"""What takes steps, and orders about workers, from the engine to the tiers."""

from typing import Protocol

from glinthawk.core.step import StepPlan
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.evacuation import Copier


class Carrier(Copier, Protocol):
    """Takes steps, and orders to copy, to the tiers; its methods must not block."""

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        """Put a step on its way; `epoch` is that under which its worker joined."""

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        """Have what a worker holds dropped, after `error`; it joins again under a later epoch.
        Nothing happens if it has another epoch than this already."""

    def release_worker(self, name: str) -> None:
        """Let a worker end that asked for it: nothing that it holds is needed."""
