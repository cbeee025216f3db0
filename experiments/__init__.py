"""Studies, each one command: `python -m experiments.NAME`."""
