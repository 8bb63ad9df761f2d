"""Benchmarks: each runs its baseline in the same run and gives a result that JSON can hold."""
