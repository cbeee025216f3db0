r"""Where the excess of W1 over its floor comes from, truth by truth.

    python -m experiments.lorenz.excess --quick --out runs/lorenz

Is it the reference? A particle filter's trajectories go back to few particles, and what the studies
compare with is one of 16384. Here the posteriors of the preset "fast" are compared with filters of
16384 and of 131072 particles, and each filter with a second run of itself. "Ancestors" are the
distinct particles that all trajectories go back to at the first state.

Is it guidance, or how scores of windows are composed? Of truths 4 and 7, which are the worst, there
are posteriors by the same schedule with another gamma, and with the windows of the junction rule
closer to each other or further apart, and of all truths with those that overlap by 7 states in
place of 5, and by a network of windows of 13. Those two truths begin near the z-axis, along which
the origin attracts: c decays for long before a and b have grown. So mean and deviation of c at the
first state are shown.

Without any observation the same shows: a last table has the share of middle states near that axis,
of the composed priors' trajectories by their length, beside that of the attractor.

W1 is the mean over groups of 32 members and 16 draws of 32 trajectories of a filter, its floor the
mean over as many draws of two filters: a single one strays by a tenth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from torch import Generator, Tensor

from experiments import front
from sda_fast import VPSDE, Junction, Recipe, load_prior, preset, sample
from sda_fast.evaluation import energy_distance, particle_filter, wasserstein

from .. import study
from ..study import Record
from . import cases
from .cases import FILTER, GAMMA, LENGTH, chain
from .posterior import SETTINGS

DRAWS, GROUP = 16, 32
RECIPE = preset("fast")
FAST = RECIPE.name
LATER = preset("fast", last=front.LAST)
OF_13 = "windows of 13"

PRIOR, LONGER = "lorenz63-w9", "lorenz63-w13"

# ways to sample: priors, recipes and gammas
METHODS: dict[str, tuple[str, Recipe, float]] = {
    FAST: (PRIOR, RECIPE, GAMMA),
    "gamma 0.003": (PRIOR, RECIPE, 0.003),
    "gamma 0.3": (PRIOR, RECIPE, 0.3),
    "stride 6": (PRIOR, replace(RECIPE, composition=Junction(9, 6)), GAMMA),
    "stride 2": (PRIOR, replace(RECIPE, composition=Junction(9, 2)), GAMMA),
    "stride 1": (PRIOR, replace(RECIPE, composition=Junction(9, 1)), GAMMA),
    OF_13: (LONGER, LATER, GAMMA),
    f"{OF_13}, stride 4": (LONGER, replace(LATER, composition=Junction(13, 4)), GAMMA),
}

# of trajectories that nothing guides: priors, their windows and strides
UNGUIDED = ((PRIOR, 9, 4), (PRIOR, 9, 2), (LONGER, 13, 6), (LONGER, 13, 4))


@dataclass(frozen=True)
class Profile:
    """What is run: the preset against both filters, other methods against the larger one."""

    truths: Sequence[int]
    few: int
    many: int
    methods: Sequence[str]  # those run by all truths, the others by the worst
    members: int
    lengths: Sequence[int]  # of the prior's trajectories
    unguided: int  # their number


WORST = (4, 7)
QUICK = Profile(WORST, 2**14, 2**17, (FAST,), members=32, lengths=(9, 17, 33), unguided=512)
BY_ALL = (FAST, "stride 2", OF_13, f"{OF_13}, stride 4")
FULL = Profile(range(2, 10), 2**14, 2**17, BY_ALL, members=32, lengths=(9, 17, 33), unguided=2048)


@dataclass(frozen=True)
class Cell:
    """One posterior, and the filter that it is compared with."""

    setting: str
    truth: int
    method: str
    particles: int
    members: int


@dataclass(frozen=True)
class Unguided:
    """Trajectories of a prior."""

    prior: str
    window: int
    stride: int
    length: int
    members: int


def cells(profile: Profile) -> list[Cell]:
    """Lists a profile's cells."""
    names = [(profile.few, FILTER), (profile.few, FAST), (profile.many, FILTER)]
    names += [(profile.many, method) for method in METHODS]
    return [
        Cell(setting, truth, method, particles, profile.members)
        for particles, method in names
        for setting in SETTINGS
        for truth in (profile.truths if method in (FILTER, *profile.methods) else WORST)
    ]


@cache
def attractor(particles: int, run: int) -> Tensor:
    """Draws states from the stationary law, one for each particle."""
    generator = Generator().manual_seed(run)
    x = chain.prior((particles,), generator=generator)
    return chain.trajectory(x, cases.SPIN_UP, last=True, generator=generator)


@cache
def reference(setting: str, truth: int, particles: int, run: int) -> tuple[Tensor, int, int]:
    """Filters: returns trajectories (n, L, 3), the number of their ancestors at the first state and
    the least effective sample size."""
    instrument = SETTINGS[setting]
    observation = cases.observe(instrument, *cases.simulate(truth))
    generator = Generator().manual_seed(1000 * run + truth)
    x = attractor(particles, run)
    filtered = particle_filter(chain, observation, x, length=LENGTH, generator=generator)
    trajectories = filtered.trajectories(DRAWS * GROUP, generator=generator)
    return trajectories, int(filtered.distinct()[0]), int(filtered.ess.min())


def draw(cell: Cell) -> Tensor:
    """Draws physical trajectories (N, L, 3) by a cell's method."""
    name, recipe, gamma = METHODS[cell.method]
    instrument = SETTINGS[cell.setting]
    truth, generator = cases.simulate(cell.truth)
    case = cases.Case(truth, cases.observe(instrument, truth, generator), truth[None])
    prior = load_prior(name, length=LENGTH, composition=recipe.composition)
    sde = VPSDE(cases.guide(case, instrument, prior, gamma), prior.shape)
    return chain.postprocess(sample(sde, (cell.members,), seed=cell.truth, **recipe.options))


def distance(x: Tensor, y: Tensor) -> float:
    """Returns the mean W1 of groups of two ensembles, over draws of the second."""
    some, others = x.split(GROUP), y.split(GROUP)
    pairs = [(some[i % len(some)], other) for i, other in enumerate(others)]
    return sum(wasserstein(a, b) for a, b in pairs) / len(pairs)


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    where = cell.setting, cell.truth, cell.particles
    exact, ancestors, ess = reference(*where, 1)
    other, *_ = reference(*where, 2)
    x = cases.kept(other if cell.method == FILTER else draw(cell))
    observation = cases.observe(SETTINGS[cell.setting], *cases.simulate(cell.truth))

    return {
        "floor": distance(other, exact),
        "w1": distance(x, exact),
        "energy": energy_distance(x, exact, unbiased=True),
        "log_prior": (LENGTH - 1) * float(cases.log_prior(chain, x.double()).mean()),
        "log_likelihood": float(cases.total_log_likelihood(observation, x).mean()),
        "c": float(x[:, 0, 2].mean()),
        "c_std": float(x[:, 0, 2].std()),
        "ancestors": ancestors,
        "ess": ess,
    }


def near_axis(x: Tensor) -> Tensor:
    """Says which physical states (n, 3) are near the z-axis."""
    return (x[:, 0].abs() < 2) & (x[:, 1].abs() < 3)


def evaluate_prior(cell: Unguided) -> Record:
    """Returns the share of middle states near the axis."""
    rule = Junction(cell.window, cell.stride)
    prior = load_prior(cell.prior, length=cell.length, composition=rule)
    x = chain.postprocess(sample(prior, (cell.members,), seed=0, **RECIPE.options))
    return {"near": float(near_axis(x[:, cell.length // 2]).double().mean())}


def prior_table(records: Sequence[Record], particles: int) -> str:
    """Writes the shares of middle states near the axis, and their standard errors."""
    exact = float(near_axis(attractor(particles, 1)).double().mean())
    lines = [["attractor", "", "", "", f"{exact:.1%}"]]
    for r in records:
        error = math.sqrt(exact * (1 - exact) / r["members"])
        near = f"{r['near']:.1%} ± {error:.1%}"
        lines.append([r["prior"], r["window"], r["stride"], r["length"], near])

    return study.table(["", "windows of", "stride", "states", "near the axis"], lines)


def filters_table(records: Sequence[Record], profile: Profile) -> str:
    """Writes what the number of particles changes, for each truth and on average."""
    found = {(r["particles"], r["method"], r["setting"], r["truth"]): r for r in records}
    head, lines = ["", "truth"], []
    for n in (profile.few, profile.many):
        head += [f"{n} particles: ancestors", "floor", "its energy", "W1 / floor", "energy"]
    for setting in SETTINGS:
        ratios: list[list[float]] = [[], []]
        for truth in profile.truths:
            line = [setting, truth]
            for i, n in enumerate((profile.few, profile.many)):
                exact = found[n, FILTER, setting, truth]
                own = found[n, FAST, setting, truth]
                ratios[i].append(own["w1"] / own["floor"])
                line += [exact["ancestors"], f"{exact['floor']:.2f}", f"{exact['energy']:.2f}"]
                line += [f"{ratios[i][-1]:.2f}", f"{own['energy']:.2f}"]
            lines.append(line)
        means = [front.with_error(front.mean(ratio)) for ratio in ratios]
        lines.append([setting, "all", *("", "", "", means[0], ""), *("", "", "", means[1], "")])

    return study.table(head, lines)


def methods_table(records: Sequence[Record], profile: Profile) -> str:
    """Writes what guidance and composition change, for the worst truths and on average of all."""
    large = [r for r in records if r["particles"] == profile.many]
    lines = []
    for (setting, method), group in study.group(large, ("setting", "method")).items():
        ratios = {r["truth"]: r["w1"] / r["floor"] for r in group}
        rows = {r["truth"]: r for r in group}
        line = [setting, method, *[""] * (1 + len(NAMES))]
        if len(group) == len(profile.truths):
            line[2] = front.with_error(front.mean(list(ratios.values())))
            line[3:] = [f"{front.mean([r[name] for r in group])[0]:.2f}" for name in NAMES]
        for truth in WORST:
            row = rows[truth]
            line += [f"{ratios[truth]:.2f}", f"{row['c']:.1f} ± {row['c_std']:.1f}"]
            line.append(f"{row['log_likelihood']:.1f}")
        lines.append(line)

    head = ["", "", "W1 / floor", *NAMES.values()]
    each = ("W1 / floor", "first c", "log likelihood")
    head += [f"truth {t}: {what}" for t in WORST for what in each]
    return study.table(head, sorted(lines, key=lambda line: list(SETTINGS).index(str(line[0]))))


NAMES = {"energy": "energy", "log_prior": "log prior", "log_likelihood": "log likelihood"}


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the tables and returns them."""
    records = study.evaluate_all(
        out / "excess.jsonl", cells(profile), partial(evaluate, device=device)
    )
    priors = [Unguided(*how, n, profile.unguided) for how in UNGUIDED for n in profile.lengths]
    unguided = study.evaluate_all(out / "excess-prior.jsonl", priors, evaluate_prior)
    tables = (
        filters_table(records, profile),
        methods_table(records, profile),
        prior_table(unguided, profile.many),
    )
    return study.write(out, "excess", "\n\n".join(tables))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
