"""Timings and memory, native against the reference."""
