r"""How well priors denoise: :math:`E (\epsilon_\phi - \epsilon)^2` by diffusion time.

    python -m experiments.denoising lorenz63 lorenz63-w9 mine.safetensors

All are measured on the same windows, of trajectories that none of them was trained on. What is left
of the error where t is small is mostly noise that no network can know: the system's own noise moves
a state as far.
"""

import argparse

import torch
from torch import Generator

from sda_fast import load_prior
from sda_fast.data import draw_windows, simulate
from sda_fast.io import read_record
from sda_fast.systems import build_system
from sda_fast.training import LEVELS, denoising_error

SEED = 20_260


def main() -> None:
    parser = argparse.ArgumentParser(description="How well priors denoise.")
    parser.add_argument("priors", nargs="*", default=["lorenz63", "lorenz63-w9"])
    parser.add_argument("--windows", type=int, default=65536)
    parser.add_argument("--length", type=int, default=5, help="states of a window")
    arguments = parser.parse_args()

    print(f"windows of {arguments.length} states\n")
    print(
        "| | " + " | ".join(f"t = {t}" for t in LEVELS) + " |\n" + "|---" * (len(LEVELS) + 1) + "|"
    )

    for name in arguments.priors:
        sde = load_prior(name)
        generator = Generator().manual_seed(SEED)
        chain = build_system(read_record(name)["system"])
        data = simulate(chain, 1024, 256, generator=generator)

        # the widest windows that any network sees, so that all are given the same states
        windows = draw_windows(data, arguments.windows, 33, generator=generator)
        windows = windows[:, : sde.eps.window]
        errors = denoising_error(sde, windows, arguments.length)
        print(f"| {name} | " + " | ".join(f"{error:.4f}" for error in errors) + " |")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
