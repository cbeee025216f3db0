r"""Where hidden variables break the Markov property, how fast, and what larger windows mend.

    python -m experiments.lorenz.non_markov --quick --out runs/lorenz

First in closed form, for a linear chain: :mod:`experiments.hidden_variable`. Then for the two-scale
Lorenz-96 system of 5 slow sites, each with 4 fast ones that nobody sees. With b = c the coupling is
h, and c is how many times faster the fast sites are. Memory matters where the scales are not apart:
a fast site that forgets within a state is noise to the slow ones, and one that does not is told by
what they did before. Without hidden sites Lorenz-96 of one scale leads from a slow state to the
next, a map M, so that what hidden sites do is the drive :math:`r_i = x_{i+1} - M(x_i)`. Two
measurements:

    unexplained   the share of the variance of a slow site's increments that is left of the drive
                  by a regression on the last n slow states: cubic in the last of them, affine in
                  the drives before it; fitted to one half of the trajectories, judged by the
                  other. It needs no network, and says where memory is, and of how many states
    priors        of three systems: without hidden sites, with fast ones and with slow ones. One
                  length-aware network each is trained by :mod:`sda_fast.training`, alike for all,
                  and again with other seeds. All windows, of both rules, read the same network, so
                  that they differ by what a window sees, and seeds tell the noise of training

Priors are judged by

    unforeseen    what is unexplained in *their* trajectories by the regression that was fitted to
                  data, from 1 state and from 3, over the same variance. What a perfect prior that
                  remembers n states would score is known: it is what data score whose drives are
                  the regression on n states and what that leaves, drawn at random
    energy        the energy distance of unconditional trajectories of 33 states to data
    RMSE, CRPS    of posteriors, slow sites 0, 2 and 4 observed at every 4th state with a standard
                  deviation of 0.1, the means over several truths

In standardised units; "data" are other trajectories of the system. With `--quick` networks learn
for seconds, too short for windows to differ by what they see.

References:
    | Predictability: a problem partly solved (Lorenz, 1996)
    | Effects of stochastic parametrizations in the Lorenz '96 system (Wilks, 2005)
    | https://doi.org/10.1256/qj.04.03
    | Score-based Data Assimilation (Rozet & Louppe, 2023), whose section 3.1 assumes a Markov chain
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, Centre, GaussianScore, Junction, load_prior, sample
from sda_fast.composition import Composition
from sda_fast.data import simulate
from sda_fast.evaluation import crps, energy_distance, rmse
from sda_fast.io import Standardisation
from sda_fast.systems import Lorenz96, build_system
from sda_fast.training import Config, train

from .. import hidden_variable, study
from ..hidden_variable import CENTRE, JUNCTION
from ..study import Record, number

SYSTEM, LENGTH = "lorenz96_two_scale", 33
EVERY, STD, GAMMA, CLIP = 4, 0.1, 3e-2, 5.0
SITES, FAST, F, DT = 5, 4, 10.0, 0.1
STATES = (1, 2, 3, 5, 9)  # that a regression sees
REMEMBERED = (1, 2, 3, 5)  # the overlaps of the junction rule below
RULES: dict[tuple[str, int], Composition] = {
    (CENTRE, 3): Centre(1),
    (CENTRE, 9): Centre(4),
    (JUNCTION, 2): Junction(2, 1),
    (JUNCTION, 3): Junction(3, 1),
    (JUNCTION, 5): Junction(5, 2),
    (JUNCTION, 9): Junction(9, 4),
}
LENGTHS = (1, 2, 3, 5, 9, 9)  # of the windows and overlaps of these, that the network learns
DATA = "data"
Colours = dict[tuple[float, float], str]  # of systems, by h and c
METRICS = ("first", "third", "energy", "rmse", "crps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a prior is trained and judged."""

    iterations: int
    width: int
    trajectories: int
    states: int
    members: int
    truths: int
    steps: int
    C: int
    tau: float


@dataclass(frozen=True)
class Profile:
    """What is run."""

    closed: hidden_variable.Profile
    scan: Sequence[tuple[float, float]]  # h, c
    trained: Sequence[tuple[float, float]]
    seeds: Sequence[int]
    settings: Settings


QUICK = Profile(
    closed=hidden_variable.Profile(
        length=17,
        windows=(2, 3, 5, 9),
        shares=(0.5, 0.8),
        times=(1.0, 5.0, 20.0),
        middle=(0.8, 5.0),
        sampled=(3, 5),
        corrections=(0, 2, 8),
        steps=32,
        tau=0.1,
    ),
    scan=((2.0, 10.0), (2.0, 2.0)),
    trained=((0.0, 2.0), (2.0, 2.0)),
    seeds=(0,),
    settings=Settings(
        iterations=1500,
        width=64,
        trajectories=64,
        states=64,
        members=16,
        truths=4,
        steps=32,
        C=1,
        tau=0.5,
    ),
)
FULL = Profile(
    closed=hidden_variable.Profile(
        length=33,
        windows=(2, 3, 5, 7, 9, 13, 17),
        shares=(0.2, 0.5, 0.8, 0.95, 1.0),
        times=(0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
        middle=(0.8, 10.0),
        sampled=(3, 5, 9, 17),
        corrections=(0, 2, 8, 32, 128),
        steps=64,
        tau=0.1,
    ),
    scan=tuple((h, c) for c in (10.0, 4.0, 2.0) for h in (1.0, 1.5, 2.0)),
    trained=((0.0, 2.0), (2.0, 10.0), (2.0, 2.0)),
    seeds=(0, 1, 2),
    settings=Settings(
        iterations=6000,
        width=128,
        trajectories=256,
        states=384,
        members=64,
        truths=8,
        steps=64,
        C=2,
        tau=0.5,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One way to read one prior; or data, with or without a prior to compare with."""

    h: float
    c: float
    rule: str
    window: int
    seed: int


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells, those of data first."""
    settings = asdict(profile.settings)
    for h, c in dict.fromkeys((*profile.scan, *profile.trained)):
        yield Cell(h=h, c=c, rule=DATA, window=0, seed=0, **settings)
    for seed in profile.seeds:
        for h, c in profile.trained:
            for rule, window in RULES:
                yield Cell(h=h, c=c, rule=rule, window=window, seed=seed, **settings)


def parameters(h: float, c: float) -> dict[str, Any]:
    """Returns the parameters of the system, integrated finely enough for its fast sites."""
    steps = max(10, round(2 * c))
    scales = {"h": h, "b": c, "c": c, "F": F}
    return {"n": SITES, "J": FAST, **scales, "hidden": True, "dt": DT, "steps": steps}


@cache
def data(h: float, c: float, n: int, length: int, seed: int) -> Tensor:
    """Simulates slow sites (n, L, 5), in physical units."""
    chain = build_system(SYSTEM, **parameters(h, c))
    generator = Generator().manual_seed(seed)
    return simulate(chain, n, length, burn_in=256, generator=generator)


def slow_alone(c: float) -> Callable[[Tensor], Tensor]:
    """Returns the transition M of slow sites without hidden ones."""
    return Lorenz96(n=SITES, F=F, dt=DT, steps=parameters(0.0, c)["steps"]).transition


def regression(
    x: Tensor, M: Callable[[Tensor], Tensor], n: int, start: int
) -> tuple[Tensor, Tensor]:
    """Returns what n states tell, and the drives after them.

    Arguments:
        x: Trajectories, with shape (N, L, D).
        M: The transition without hidden variables.
        n: The number of states that predict.
        start: The number of the first state, counted from 0, that is the last of n.

    Returns:
        The features, with shape (N (L - 1 - start), *), and drives, (N (L - 1 - start), D).
    """
    x = x.double()
    last = x[:, start:-1]
    drive = x[:, 1:] - M(x[:, :-1])
    before = [drive[:, start - j : drive.shape[1] - j] for j in range(1, n)]
    i, j = torch.triu_indices(x.shape[2], x.shape[2])
    products = last[..., i] * last[..., j]
    features = torch.cat((torch.ones_like(last[..., :1]), last, products, last**3, *before), dim=2)
    return features.flatten(0, 1), drive[:, start:].flatten(0, 1)


def memory(
    x: Tensor,
    y: Tensor,
    M: Callable[[Tensor], Tensor] = lambda x: x,
    states: Sequence[int] = STATES,
) -> list[float]:
    """Returns the unexplained variance of drives from the states before, by regressions.

    Arguments:
        x: Trajectories that regressions are fitted to, with shape (N, L, D).
        y: Those that they are judged by, with shape (N', L', D).
        M: The transition without hidden variables; by default states stay.
        states: The numbers of states that predict.

    Returns:
        The shares of the variance of the increments of x.
    """
    start = max(states) - 1
    increments = (x[:, 1:] - x[:, :-1]).double().flatten(0, 1)
    left = []
    for n in states:
        features, drive = regression(x, M, n, start)
        solution = torch.linalg.lstsq(features, drive).solution
        features, drive = regression(y, M, n, start)
        left.append(float((drive - features @ solution).square().mean()))
    scale = float(increments.var(dim=0, correction=0).mean())
    return [value / scale for value in left]


def forgetful(
    x: Tensor, M: Callable[[Tensor], Tensor], n: int, length: int, generator: Generator
) -> Tensor:
    """Draws trajectories that are like data but for what they remember: the regression on n states,
    and what it leaves at random, as a chain.

    Arguments:
        x: Trajectories, with shape (N, L, D).
        M: The transition without hidden variables.
        n: The number of states that are remembered.
        length: The number of states drawn of each trajectory, after its first n.
        generator: The source of randomness.

    Returns:
        The states drawn, with shape (N, length, D).
    """
    features, drive = regression(x, M, n, n - 1)
    solution = torch.linalg.lstsq(features, drive).solution
    left = drive - features @ solution
    z = x[:, :n].double()
    for _ in range(length):
        # the state after the last is not known yet, and any will do
        features, _ = regression(torch.cat((z[:, -n:], z[:, -1:]), dim=1), M, n, n - 1)
        fresh = left[torch.randint(len(left), (len(z),), generator=generator)]
        z = torch.cat((z, (M(z[:, -1]) + features @ solution + fresh)[:, None]), dim=1)

    return z[:, n:]


def prior(cell: Cell, folder: Path, device: str) -> tuple[VPSDE, Standardisation]:
    """Trains the prior of a cell, unless the folder holds it."""
    name = f"h{cell.h:g}-c{cell.c:g}-{cell.iterations}-{cell.width}-{cell.seed}.safetensors"
    path = folder / name
    if not path.exists():
        config = Config(
            system=SYSTEM,
            parameters=parameters(cell.h, cell.c),
            trajectories=cell.trajectories,
            states=cell.states,
            order=max(LENGTHS) // 2,
            length_aware=True,
            lengths=LENGTHS,
            composition="junction",
            width=cell.width,
            depth=4,
            iterations=cell.iterations,
            batch_size=128,
            ema=0.995,
            validation=1024,
            seed=cell.seed,
        )
        folder.mkdir(parents=True, exist_ok=True)
        every = max(cell.iterations // 4, 1)
        train(config, path, resume=True, every=every, progress=False, device=device)

    return load_prior(path, length=LENGTH, device=device), Standardisation.load(path)


def evaluate(cell: Cell, folder: Path, device: str = "cpu") -> Record:
    """Returns a prior's numbers, or those of the data."""
    x = data(cell.h, cell.c, 128, 64, 1)
    other = data(cell.h, cell.c, max(cell.members, 128), 64, 2)
    M = slow_alone(cell.c)
    if cell.rule == DATA:
        std, mean = torch.std_mean(x, dim=(0, 1))
        a, b = ((y[: cell.members, :LENGTH] - mean) / std for y in (x, other))
        generator = Generator().manual_seed(5)
        third = [memory(x, forgetful(x, M, n, 16, generator), M, (3,))[0] for n in REMEMBERED]
        record = {"memory": memory(x, other, M), "forgetful": third}
        return record | {"energy": energy_distance(a, b, unbiased=True)}

    sde, scale = prior(cell, folder, device)
    sde.eps.composition = RULES[cell.rule, cell.window]
    options = {"steps": cell.steps, "corrections": cell.C, "tau": cell.tau, "clip": CLIP}
    drawn = sample(sde, (cell.members,), seed=cell.seed, **options).cpu()
    first, third = memory(x, scale.postprocess(drawn), M, (1, 3))
    b = scale.preprocess(other[: cell.members, :LENGTH])
    record: Record = {
        "first": first,
        "third": third,
        "energy": energy_distance(drawn, b, unbiased=True),
    }

    # all truths at once, with as many members as there are samples of the prior
    truth = scale.preprocess(data(cell.h, cell.c, cell.truths, LENGTH, 3))
    y = truth[:, ::EVERY, ::2]
    y = y + STD * torch.randn(y.shape, generator=Generator().manual_seed(4))
    members = max(cell.members // cell.truths, 4)
    guided = GaussianScore(
        y.repeat(members, 1, 1).to(device), lambda x: x[:, ::EVERY, ::2], STD, sde, gamma=GAMMA
    )
    posterior = VPSDE(guided, sde.shape).to(device)
    drawn = sample(posterior, (members * cell.truths,), seed=cell.seed, **options).cpu()
    ensembles = drawn.unflatten(0, (members, cell.truths))
    record["rmse"] = float(rmse(ensembles.mean(dim=0), truth))
    record["crps"] = float(crps(ensembles, truth, fair=True).mean())

    return record


def decimals(x: float) -> str:
    """Writes a number of priors with three decimals."""
    return f"{x:.3f}" if abs(x) < 1000 else number(x)


def with_error(records: Sequence[Record], metric: str) -> str:
    """Writes the mean over trainings, and the standard deviation of one."""
    values = torch.tensor([r[metric] for r in records if "error" not in r], dtype=torch.float64)
    if len(values) < len(records):
        return "diverged"
    spread = f" ± {decimals(float(values.std()))}" if len(values) > 1 else ""
    return f"{decimals(float(values.mean()))}{spread}"


def name_of(h: float, c: float) -> str:
    """Names a system."""
    return f"h = {h:g}, c = {c:g}" if h else "h = 0, Markov"


def tables(records: Sequence[Record], profile: Profile) -> str:
    """Writes the memory of the data, and the scores of the priors."""
    of_data = {(r["h"], r["c"]): r for r in records if r["rule"] == DATA}
    lines = [
        (name_of(h, c), *(f"{share:.4f}" for share in of_data[h, c]["memory"]))
        for h, c in profile.scan
    ]
    rows = []
    for h, c in profile.trained:
        data = of_data[h, c]
        known = dict(zip(STATES, data["memory"], strict=True))
        scores = map(decimals, (known[1], known[3], data["energy"]))
        rows.append((name_of(h, c), DATA, "", *scores, "", ""))
        mine = [r for r in records if (r["h"], r["c"]) == (h, c) and r["rule"] != DATA]
        for (rule, w), group in study.group(mine, ("rule", "window")).items():
            rows.append((name_of(h, c), rule, w, *(with_error(group, m) for m in METRICS)))

    head = ["unexplained, from", *(f"{n} state{'s' * (n > 1)}" for n in STATES)]
    names = ["unforeseen, 1 state", "3 states", "energy", "RMSE", "CRPS"]
    trained = study.table(["", "", "w", *names], rows)
    forgotten = [
        (name_of(h, c), *map(decimals, of_data[h, c]["forgetful"])) for h, c in profile.trained
    ]
    remembered = ["unforeseen from 3 states, if it remembers", *map(str, REMEMBERED)]
    s, n = profile.settings, len(profile.seeds)
    of_trainings = f"mean of {n} trainings, standard deviation of one" if n > 1 else "one training"
    return "\n\n".join(
        (
            "Two-scale Lorenz-96: what slow states do not tell of the next.",
            study.table(head, lines),
            "What perfect priors of so many states of memory would score below.",
            study.table(remembered, forgotten),
            f"Priors of {s.iterations} iterations, {s.steps} steps, C = {s.C}, tau = {s.tau:g}: "
            f"{of_trainings}.",
            trained,
        )
    )


def draw_scores(panel: Any, records: Sequence[Record], metric: str, style: dict[str, Any]) -> None:
    """Draws a score of priors against the window, the mean over trainings and the deviation."""
    groups = study.group([r for r in records if "error" not in r], ("window",))
    values = [torch.tensor([r[metric] for r in group]) for group in groups.values()]
    means = [float(v.mean()) for v in values]
    errors = [float(v.std()) if len(v) > 1 else 0.0 for v in values]
    panel.errorbar([w for (w,) in groups], means, errors, ms=4, capsize=2, **style)


def draw_trained(panel: Any, records: Sequence[Record], metric: str, colours: Colours) -> None:
    """Draws a score of all priors, by both rules."""
    styles = {CENTRE: {"marker": "s", "ls": "--", "mfc": "white"}, JUNCTION: {"marker": "o"}}
    for (h, c), colour in colours.items():
        for rule, style in styles.items():
            mine = [r for r in records if (r["h"], r["c"], r["rule"]) == (h, c, rule)]
            label = f"{rule}, {name_of(h, c)}"
            draw_scores(panel, mine, metric, {"color": colour, "label": label, **style})
    panel.set_xlabel("window w")


FORESEEN = 0.03  # what is unforeseen of perfect priors without memory is far below


def draw_figure(closed: Sequence[Record], records: Sequence[Record], profile: Profile) -> Any:
    """Draws the closed form above, Lorenz-96 below."""
    figure, axes = study.panels(2, 3, width=3, height=2.9)
    hidden_variable.draw(closed, profile.closed, axes[0])

    of_data = {(r["h"], r["c"]): r for r in records if r["rule"] == DATA}
    strongest = [(h, c) for h, c in profile.scan if h == max(h for h, _ in profile.scan)]
    systems = dict.fromkeys((*profile.trained, *strongest))
    colours = dict(zip(systems, study.COLOURS, strict=False))
    left, middle, right = axes[1]
    for system in strongest:
        style = {"color": colours[system], "label": f"data, {name_of(*system)}"}
        left.plot(STATES, of_data[system]["memory"], "^-", ms=4, **style)
    left.set(yscale="log", xlabel="states that predict", ylabel="share unexplained")

    trained = {system: colours[system] for system in profile.trained}
    draw_trained(middle, records, "third", trained)
    draw_trained(right, records, "rmse", trained)
    windows = [w for rule, w in RULES if rule == JUNCTION]
    for system, colour in trained.items():
        perfect = of_data[system]["forgetful"]
        if max(perfect) > FORESEEN:
            label = f"perfect, {name_of(*system)}"
            middle.plot(windows, perfect, ":", color=colour, lw=1.5, label=label)
    middle.set(yscale="log", ylim=(FORESEEN, None), ylabel="unforeseen from 3 states")
    right.set(ylim=(0, None), ylabel="RMSE of posteriors")
    for axis in (left.yaxis, middle.yaxis):
        study.plain_ticks(axis)
    study.legend(figure, left, middle, loc="outside lower center", ncols=4)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Trains and evaluates what the folder does not hold yet, writes tables and figure."""
    closed = hidden_variable.evaluate_all(out, profile.closed)
    records = study.evaluate_all(
        out / "non_markov.jsonl",
        list(cells(profile)),
        partial(evaluate, folder=out / "priors", device=device),
    )
    text = f"{hidden_variable.tables(closed, profile.closed)}\n\n{tables(records, profile)}"
    return study.write(out, "non_markov", text, draw_figure(closed, records, profile))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
