"""Glinthawk: large-language-model inference for throughput and cost, in two tiers."""

__version__ = "0.3.0"
