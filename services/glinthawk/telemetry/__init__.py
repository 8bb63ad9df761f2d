"""Logs and metrics: what a process tells of itself. Prompts and tokens never appear here."""
