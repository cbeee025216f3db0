r"""How to train a network of windows: what of its loss, target and size posteriors gain from.

    python -m experiments.training --quick --out runs/training

One length-aware network of windows of 1 to 9 states of Lorenz-63 is trained again and again, at
equal cost, each time with one change, or two:

    as shipped        the noise is estimated, times are uniform, lengths those of `lorenz63-w9`
    early times       t = u^2, as the presets' grid, u uniform: a weight of 1 / (2 sqrt t)
    velocity          :class:`sda_fast.kernels.VelocityKernel`; the loss is of the noise
    EDM               the same, with the loss and the noise levels of Karras et al. (2022): of the
                      velocity, and log(sigma / mu) normal with mean -1.2 and deviation 1.2
    preconditioned    EDM's preconditioning by the covariance of windows
                      (:mod:`experiments.preconditioning`)
    5 and 9 only      the lengths that the junction rule of the presets asks for, and no others
    9 and 13 only     windows of 13 states that overlap by 9: as many of them as of 9 by 5
    halves            half of the windows have 9 states, the other half are cut out of them
    consistency       the same, and those cut out learn what the long ones estimate
    wide              width 384, with 6 tenths of the iterations: equal time
    preconditioned, 5 and 9 only

**Consistency.** The score of a window is the conditional mean of the score of any longer window
around it, at equal noise:

.. math:: \epsilon(x_S(t)) = E[\epsilon \mid x_S(t)]
    = E\bigl[E[\epsilon_S \mid x_W(t)] \mid x_S(t)\bigr] = E[\epsilon_S(x_W(t)) \mid x_S(t)],
    \qquad S \subset W

by the tower property. So a regression of the short window's output on that of the long one, which
is not differentiated, has the same minimum as one on the noise itself, and its target has less
variance: that of the noise given the long window is gone. It is as biased as the long window's
output is.

Each network is judged by its denoising error on windows that none was trained on, paired with that
of the network as shipped, on the same windows and noise, and by posteriors of the preset "fast", of
truths that the presets were tuned on, scored as in :mod:`experiments.front`, and by the share of
middle states near the z-axis of trajectories that nothing guides, where the composed prior fails
first (:mod:`experiments.lorenz.excess`). The priors that come with the package stand beside them,
with 250,000 iterations.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sda_fast import VPSDE, Junction, MCScoreNet, load_prior, preset, sample
from sda_fast import Recipe as Sampling
from sda_fast.data import draw_windows, simulate
from sda_fast.kernels import VelocityKernel
from sda_fast.training import LEVELS
from sda_fast.training.loss import consistency_error, cut, squared_error

from . import front, study
from .fit import fit
from .lorenz import cases
from .lorenz.cases import FILTER, LENGTH
from .lorenz.excess import near_axis
from .lorenz.posterior import SETTINGS
from .preconditioning import PreconditionedKernel
from .study import Record

SHIPPED = {front.SHORTER: Junction(9, 4), front.PRIOR: Junction(13, 6)}
BASE, PRESET = "as shipped", "fast"
BATCH, LONGEST = 128, 13
TRAJECTORIES, STATES = 8192, 1024  # what windows are cut from
MIXTURE = (1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 9, 9, 9)  # the lengths of the prior that is shipped
LENGTHS = (1, 5, 9)  # those judged
FREE = 33  # states of trajectories that nothing guides
HELD_OUT = 20_260  # the seed


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Arguments:
        name: What it is called.
        kernel: What estimates the noise: "noise", "velocity" or "preconditioned".
        power: The power of uniform numbers that diffusion times are.
        edm: Whether levels and loss are those of EDM instead.
        window: The number of states that the network scores at most.
        lengths: The lengths that are drawn from, uniformly.
        halves: Whether half of the windows have all states and the others are cut out of them.
        consistency: Whether the latter learn the former's estimate in place of the noise.
        width: The width of the hidden layers.
        share: The share of the iterations that makes its time equal to the others'.
    """

    name: str
    kernel: str = "noise"
    power: float = 1.0
    edm: bool = False
    window: int = 9
    lengths: tuple[int, ...] = MIXTURE
    halves: bool = False
    consistency: bool = False
    width: int = 256
    share: float = 1.0

    @property
    def composition(self) -> Junction:
        """The rule that posteriors are drawn by, that of the preset or one of as many windows."""
        return Junction(self.window, 4)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(BASE),
        Recipe("early times", power=2.0),
        Recipe("preconditioned", kernel="preconditioned"),
        Recipe("5 and 9 only", lengths=(5, 9)),
        Recipe("velocity", kernel="velocity"),
        Recipe("9 and 13 only", window=13, lengths=(9, 13)),
        Recipe("preconditioned, 5 and 9 only", kernel="preconditioned", lengths=(5, 9)),
        Recipe("EDM", kernel="velocity", edm=True),
        Recipe("halves", halves=True),
        Recipe("consistency", halves=True, consistency=True),
        Recipe("wide", width=384, share=0.6),
    )
}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    recipes: Sequence[str]
    iterations: int
    windows: int  # those held out
    truths: Sequence[int]
    members: int
    unguided: int  # the number of trajectories that nothing guides


QUICK = Profile(tuple(RECIPES), 2000, windows=4096, truths=(0, 1), members=32, unguided=256)
FULL = Profile(
    tuple(RECIPES),
    12_000,
    windows=16384,
    truths=(0, 1, 10, 11, 12, 13),
    members=32,
    unguided=1024,
)


@dataclass(frozen=True)
class Error:
    """The denoising errors of a network."""

    recipe: str
    iterations: int
    windows: int


@dataclass(frozen=True)
class Posterior:
    """One posterior."""

    setting: str
    recipe: str
    iterations: int
    truth: int
    members: int


@dataclass(frozen=True)
class Unguided:
    """Trajectories of a prior."""

    recipe: str
    iterations: int
    trajectories: int


# Training


@cache
def data() -> Tensor:
    """Simulates standardised trajectories (n, L, 3) to learn from."""
    return simulate(cases.chain, TRAJECTORIES, STATES, generator=Generator().manual_seed(0))


def build(recipe: Recipe) -> MCScoreNet:
    """Builds a recipe's network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MCScoreNet(
            3,
            order=recipe.window // 2,
            length_aware=True,
            embedding=32,
            hidden_features=[recipe.width] * 5,
            activation=nn.SiLU,
        )
        if recipe.kernel == "velocity":
            network.kernel = VelocityKernel(network.kernel)  # type: ignore[assignment]
        elif recipe.kernel == "preconditioned":
            windows = draw_windows(data(), 2**16, recipe.window)
            network.kernel = PreconditionedKernel(network.kernel, windows)  # type: ignore[assignment]

    return network


def times(recipe: Recipe, sde: VPSDE, n: int) -> Tensor:
    """Draws diffusion times (n), spread over the batch."""
    u = (torch.arange(n) + torch.rand(n)) / n
    if not recipe.edm:
        return u**recipe.power

    ratio = torch.exp(-1.2 + 1.2 * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
    mu = torch.sqrt((1 + sde.eta**2) / (1 + ratio**2)).clamp(sde.eta, 1)
    return torch.acos(mu.sqrt()) / math.acos(math.sqrt(sde.eta))


def loss(network: MCScoreNet, recipe: Recipe) -> Tensor:
    """Returns the denoising loss of a batch of windows."""
    sde = VPSDE(network, (recipe.window, 3))
    if recipe.halves:
        return halves(network, recipe, sde)

    x = draw_windows(data(), BATCH, recipe.window)
    lengths = torch.tensor(recipe.lengths)
    length = lengths[torch.randint(len(lengths), (BATCH,))]
    t = times(recipe, sde, BATCH)

    error = squared_error(network, x, torch.randn_like(x), t, length, sde)
    return (error / sde.mu(t) ** 2 if recipe.edm else error).mean()


def halves(network: MCScoreNet, recipe: Recipe, sde: VPSDE) -> Tensor:
    """Returns the loss of whole windows and of parts cut out of them, with the same noise and
    times."""
    n = BATCH // 2
    x, t = draw_windows(data(), n, recipe.window), times(recipe, sde, n)
    eps = torch.randn_like(x)
    shorter = torch.tensor([m for m in recipe.lengths if m < recipe.window])
    length = shorter[torch.randint(len(shorter), (n,))]
    start = (torch.rand(n) * (recipe.window - length + 1)).long()
    if recipe.consistency:
        return consistency_error(network, x, eps, t, start, length, sde).mean()

    x, eps = (torch.cat((y, cut(y, start))) for y in (x, eps))
    lengths = torch.cat((torch.full((n,), recipe.window), length))
    return squared_error(network, x, eps, torch.cat((t, t)), lengths, sde).mean()


def train(folder: Path, name: str, iterations: int) -> MCScoreNet:
    """Trains a network by a recipe's name, unless the folder holds it. Those of the package come
    with it."""
    if name in SHIPPED:
        network = load_prior(name, composition=SHIPPED[name]).eps
        assert isinstance(network, MCScoreNet)
        return network

    recipe = RECIPES[name]
    steps = round(recipe.share * iterations)
    path = folder / f"{name.replace(',', '').replace(' ', '-')}-{iterations}.safetensors"
    network = fit(build(recipe), partial(loss, recipe=recipe), path, iterations=steps)
    network.composition = recipe.composition
    return network


# Judging


@cache
def held_out(n: int) -> tuple[Tensor, Tensor]:
    """Returns n standardised windows (n, w, 3), and their noise."""
    generator = Generator().manual_seed(HELD_OUT)
    trajectories = simulate(cases.chain, 1024, 256, generator=generator)
    x = draw_windows(trajectories, n, LONGEST, generator=generator)
    return x, torch.randn(x.shape, generator=generator)


@cache
def errors(folder: Path, name: str, iterations: int, n: int) -> Tensor:
    """Returns a network's denoising errors (lengths, levels, n) of single windows."""
    network = train(folder, name, iterations)
    x, eps = (y[:, : network.window] for y in held_out(n))
    sde = VPSDE(network, x.shape[1:])
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack(
                    [
                        squared_error(
                            network, x, eps, torch.full((n,), t), torch.full((n,), length), sde
                        )
                        for t in LEVELS
                    ]
                )
                for length in LENGTHS
            ]
        )


def denoise(cell: Error, folder: Path) -> Record:
    """Measures the errors of a network, and by how much they differ from those of the one that is
    trained as shipped, on the same windows."""
    e = errors(folder, cell.recipe, cell.iterations, cell.windows)
    d = e - errors(folder, BASE, cell.iterations, cell.windows)
    return {
        "error": e.mean(dim=2).tolist(),
        "gain": d.mean(dim=2).tolist(),
        "gain_error": (d.std(dim=2) / math.sqrt(cell.windows)).tolist(),
    }


def assimilate(cell: Posterior, folder: Path) -> Record:
    """Draws one posterior and scores it."""
    exact = front.second_run(cell.setting, cell.truth, cell.members)
    if cell.recipe == FILTER:
        return exact

    instrument, how = SETTINGS[cell.setting], recipe_of(cell.recipe)
    case = cases.make_case(instrument, cell.truth, cell.members)
    network = train(folder, cell.recipe, cell.iterations)
    guided = cases.guide(case, instrument, VPSDE(network, (LENGTH, 3)))
    sde = VPSDE(guided, guided.sde.shape)
    x = sample(sde, (cell.members,), seed=cell.truth, **how.options)

    return front.score(cases.chain.postprocess(x), case) | front.relative(exact)


def simulate_prior(cell: Unguided, folder: Path) -> Record:
    """Draws trajectories of a prior, and returns how many are near the z-axis in the middle."""
    network = train(folder, cell.recipe, cell.iterations)
    sde = VPSDE(network, (FREE, 3))
    x = cases.kept(
        cases.chain.postprocess(
            sample(sde, (cell.trajectories,), seed=0, **recipe_of(cell.recipe).options)
        )
    )
    return {"near": float(near_axis(x[:, FREE // 2]).double().mean())}


def cells(profile: Profile) -> tuple[list[Error], list[Unguided], list[Posterior]]:
    """Lists a profile's cells."""
    names = (*profile.recipes, *SHIPPED)
    return (
        [Error(name, profile.iterations, profile.windows) for name in names],
        [Unguided(name, profile.iterations, profile.unguided) for name in names],
        [
            Posterior(setting, name, profile.iterations, truth, profile.members)
            for name in (FILTER, *names)
            for setting in SETTINGS
            for truth in profile.truths
        ],
    )


# Tables


def recipe_of(name: str) -> Sampling:
    """Returns how a network's posteriors are drawn."""
    return preset(PRESET, last=front.LAST if name == front.PRIOR else None)


def learnt(name: str) -> Sequence[int]:
    """Returns the lengths that a network has learnt to score."""
    if name in RECIPES:
        return RECIPES[name].lengths
    return load_prior(name).eps.lengths or LENGTHS  # type: ignore[attr-defined,no-any-return]


def errors_table(records: Sequence[Record]) -> str:
    """Writes the errors of the network trained as shipped, and the differences from them of the
    others, in thousandths."""
    lines = []
    for i, length in enumerate(LENGTHS):
        for record in records:
            if length not in learnt(record["recipe"]):
                continue
            if record["recipe"] == BASE:
                values = [f"{e:.4f}" for e in record["error"][i]]
            else:
                pairs = zip(record["gain"][i], record["gain_error"][i], strict=True)
                values = [f"{1e3 * d:+.1f} ± {1e3 * s:.1f}" for d, s in pairs]
            lines.append([length, record["recipe"], *values])

    return study.table(["states", "", *(f"t = {t}" for t in LEVELS)], lines)


def posteriors_table(records: Sequence[Record], near: Mapping[str, float]) -> str:
    """Writes the scores' means over truths, whose errors are those of the difference from the
    network trained as shipped, truth by truth, and the shares near the axis."""
    groups = study.group(records, ("setting", "recipe"))
    lines = []
    for (setting, name), group in groups.items():
        base = values(groups[setting, BASE])
        own = values(group)
        line: list[str] = [setting, name]
        for metric, style in (("w1", ".2f"), ("energy", ".2f"), ("gap", ".1f")):
            text = f"{front.mean(own[metric])[0]:{style}}"
            if name not in (BASE, FILTER):
                paired = [a - b for a, b in zip(own[metric], base[metric], strict=True)]
                difference, error = front.mean(paired)
                text += f" ({difference:+{style}} ± {error or 0.0:{style}})"
            line.append(text)
        line.append(study.percent(front.mean(own["exact_coverage"])[0]))
        line.append(f"{near[name]:.1%}" if name in near else "")
        lines.append(line)

    head = ["", "", "W1 / floor", "energy", "log prior less the filter's"]
    return study.table([*head, "coverage of the filter's", "near the axis"], lines)


def values(group: Sequence[Record]) -> dict[str, list[float]]:
    """Returns what is shown of each truth; what diverged is infinitely bad."""
    worst = {"w1": math.inf, "energy": math.inf, "log_prior": -math.inf, "lost": 1.0}
    full = [
        worst | {"floor": 1.0, "exact_log_prior": 0.0, "exact_coverage": 0.0} | r for r in group
    ]
    return {
        "w1": [r["w1"] / r["floor"] for r in full],
        "gap": [r["log_prior"] - r["exact_log_prior"] for r in full],
        **{name: [r[name] for r in full] for name in ("energy", "exact_coverage", "lost")},
    }


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Trains and evaluates what the folder does not hold yet; writes and returns the tables."""
    folder = out / "networks"
    errors_of, unguided, posteriors = cells(profile)

    def known(name: str, some: Sequence[Any], evaluate: Callable[..., Record]) -> list[Record]:
        return study.evaluate_all(out / f"{name}.jsonl", some, partial(evaluate, folder=folder))

    text = errors_table(known("errors", errors_of, denoise))
    free = known("unguided", unguided, simulate_prior)
    near = {r["recipe"]: r["near"] for r in free if "error" not in r}
    near[FILTER] = float(near_axis(cases.attractor(1)).double().mean())
    text += "\n\n" + posteriors_table(known("posteriors", posteriors, assimilate), near)
    return study.write(out, "training", text)


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/training")
