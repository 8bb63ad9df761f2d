"""Identities, each a type of its own so that they are not mixed up."""

from typing import NewType

SequenceId = NewType("SequenceId", int)
"""A sequence, unique within one gateway's life (unsigned 64 bit)."""

LaneId = NewType("LaneId", int)
"""A lane, unique within one gateway's life (unsigned 32 bit)."""
