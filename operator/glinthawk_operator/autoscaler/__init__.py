"""How many attention workers there should be: numbers in, a decision out.

It knows neither Kubernetes nor the gateway, has no clock, and keeps nothing: the history goes in
and comes out.
"""

from glinthawk_operator.autoscaler.data import (
    Decision,
    Figures,
    History,
    Reason,
    Rules,
    StepLimit,
    Tier,
)
from glinthawk_operator.autoscaler.decide import decide, follow_replicas

__all__ = [
    "Decision",
    "Figures",
    "History",
    "Reason",
    "Rules",
    "StepLimit",
    "Tier",
    "decide",
    "follow_replicas",
]
