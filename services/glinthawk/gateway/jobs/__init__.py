"""Batch jobs: validated in a process of their own, fed to the engine, answered exactly once."""
