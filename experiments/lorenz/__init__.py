"""Studies on Lorenz-63."""
