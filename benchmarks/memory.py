"""What a long trajectory takes: peak resident memory and time against its length.

    python -m benchmarks.memory

A guided step of one sample, by the shipped Lorenz-63 prior, every eighth state observed. Each
length runs in a process of its own, since a peak is the process's.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from sda_fast import VPSDE, GaussianScore, load_prior, sample

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)


def measure(length: int) -> None:
    """Prints a row of the table for a length."""
    prior = load_prior("lorenz63", length=length)
    y = torch.zeros(len(range(0, length, 8)), 1)
    guided = GaussianScore(y, lambda x: x[..., ::8, :1], std=1.0, sde=prior, gamma=1.0)

    began = time.perf_counter()
    sample(VPSDE(guided, prior.shape), steps=1)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    print(f"| {length:,} | {seconds:.2f} | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time against length.")
    parser.add_argument("--length", type=int, help="one length, in this process")
    arguments = parser.parse_args()

    if arguments.length is not None:
        return measure(arguments.length)

    print(f"{torch.get_num_threads()} threads\n")
    print("| states | seconds a guided step | peak resident MB |\n|---|---|---|", flush=True)
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.memory", "--length", str(length)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
