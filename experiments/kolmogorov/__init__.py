"""Assimilation of Kolmogorov flow: `python -m experiments.kolmogorov CASE`."""
