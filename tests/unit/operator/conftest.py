"""Hypothesis without a bound for an example: a loaded machine stands still for longer."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
