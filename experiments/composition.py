r"""What composing the score of windows costs, in closed form.

    python -m experiments.composition

A stationary AR(1) chain, :math:`x_i = a x_{i-1} + \sqrt{1 - a^2} z_i`, has analytic window scores,
so that the only errors are those of the composition and of the sampler. The table gives the
Kullback-Leibler divergence of the sampler's law from the truth, in nats, for a trajectory of 33
states, by the composition and the number C of corrections a step.
"""

import argparse

import torch

from sda_fast import VPSDE, Centre, Junction
from sda_fast.composition import Composition
from sda_fast.evaluation import kl_divergence, sampler_law

from .pseudo_blanket import make_chain, make_estimator


def divergences(
    rule: Composition | None, a: float, length: int, window: int, steps: int, tau: float
) -> tuple[int, list[float]]:
    """Returns the states that a score evaluation reads, and the divergence for each C."""
    chain = make_chain(a)
    truth = chain.joint(length)
    sde = VPSDE(torch.nn.Identity(), shape=(length, 1))
    estimator = make_estimator(rule, chain, length, window, sde)
    states = length if rule is None else int(rule.plan(length).length.sum())

    return states, [
        kl_divergence(sampler_law(sde, estimator, steps=steps, corrections=c, tau=tau), truth)
        for c in (0, 1, 4)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What composing window scores costs.")
    parser.add_argument("--a", type=float, nargs="+", default=[0.9, 0.98], help="correlation")
    parser.add_argument("--length", type=int, default=33)
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--tau", type=float, default=0.25)
    arguments = parser.parse_args()
    window = arguments.window

    rules: dict[str, Composition | None] = {"exact score": None, "centre": Centre(window // 2)}
    rules |= {f"junction, stride {s}": Junction(window, s) for s in (1, 2, window // 2)}

    for a in arguments.a:
        print(
            f"\na = {a}, {arguments.length} states, windows of {window}, {arguments.steps} steps\n"
        )
        print("| | states read | C = 0 | C = 1 | C = 4 |\n|---|---|---|---|---|")
        for name, rule in rules.items():
            states, values = divergences(
                rule, a, arguments.length, window, arguments.steps, arguments.tau
            )
            print(f"| {name} | {states} | " + " | ".join(f"{v:.3f}" for v in values) + " |")


if __name__ == "__main__":
    main()
