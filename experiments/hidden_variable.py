r"""What memory costs a composition, in closed form: a linear chain with a hidden variable.

The visible states x are driven by a hidden variable z, and by noise of their own,

.. math::
    x_{i+1} & = a x_i + g (\sqrt s \, z_i + \sqrt{1 - s} \, w_i), & a & = e^{-1 / T_x} \\
    z_{i+1} & = b z_i + \sqrt{1 - b^2} \, v_i,                    & b & = e^{-1 / T}

with g such that x has variance 1. The share s of the drive is what nobody sees, and T, in states,
is for how long it remembers; :math:`T_x = 5` throughout. With s = 0 the visible states are a
Markov chain, and with a hidden variable that forgets at once (T to 0) too. With s = 1 they are an
autoregression of order 2: two states tell z. Between, what came before tells of z for ever, the
less the longer ago. All laws are Gaussian, so that windows' scores, their composition and its
samples are known exactly (:mod:`sda_fast.evaluation`): no network, no Monte-Carlo noise.

Composing costs something even of a Markov chain, since states with noise on them are none
(:mod:`experiments.pseudo_blanket`); Langevin corrections at the last, smallest noise level mend
that. So there are two questions:

    limit      the law that corrections at the last noise level converge to. Of a Markov chain it is
               the truth, whatever the window. With the composed score :math:`-B x` there, its
               covariance S solves :math:`B S + S B^\top = 2 I`; where an eigenvalue of B has no
               positive real part there is no such law, and corrections drive samples apart:
               "unstable". Of the junction rule with a stride of 1 it is the chain that remembers
               w - 1 states; here the stride is k, as elsewhere
    sampler    how far corrections come in practice, beside the same for the Markov chain with the
               same law of two neighbours, its twin

Both as the Kullback-Leibler divergence of the samples from the truth, in nats, of trajectories; the
limit also of posteriors, the mean over observations of every 4th state.

References:
    | Optimal prediction and the Mori-Zwanzig representation of irreversible processes
    | (Chorin, Hald & Kupferman, 2000), https://doi.org/10.1073/pnas.97.7.2968
    | Score-based Data Assimilation (Rozet & Louppe, 2023), whose section 3.1 assumes a Markov chain
    | https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sda_fast import VPSDE, Centre, Junction, MCScoreNet
from sda_fast.composition import Composition
from sda_fast.evaluation import (
    Gaussian,
    GaussianEstimator,
    LinearGaussianChain,
    WindowEstimator,
    kl_divergence,
    sampler_law,
)

from . import study
from .pseudo_blanket import make_chain
from .study import Record, number

EXACT, CENTRE, JUNCTION = "exact score", "centre", "junction"
MEMORY, EVERY, STD = 5.0, 4, 0.1  # T_x; every 4th state is observed, with this deviation
LITTLE = 0.1  # nats, that memory may cost
LIMIT = -1  # in place of a number of corrections


@dataclass(frozen=True)
class Profile:
    """What is computed: limits of all combinations, and the sampler for one s and T."""

    length: int
    windows: Sequence[int]
    shares: Sequence[float]
    times: Sequence[float]
    middle: tuple[float, float]  # s, T, where others vary
    sampled: Sequence[int]  # windows
    corrections: Sequence[int]
    steps: int
    tau: float


@dataclass(frozen=True)
class Cell:
    """One law, of the hidden variable's chain or of its Markov twin."""

    length: int
    rule: str
    window: int
    share: float
    time: float
    markov: bool
    corrections: int
    steps: int
    tau: float


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    n, s, T = profile.length, *profile.middle
    rules = [(JUNCTION, w) for w in profile.windows] + [(CENTRE, w) for w in profile.windows]
    for share in dict.fromkeys((*profile.shares, s)):
        for time in profile.times:
            for rule, w in rules:
                if rule == JUNCTION or w > 2:
                    yield Cell(n, rule, w, share, time, False, LIMIT, 0, 0.0)
    rules = [(EXACT, 0)] + [(rule, w) for rule in (CENTRE, JUNCTION) for w in profile.sampled]
    for C in profile.corrections:
        for rule, w in rules:
            for markov in (False, True):
                yield Cell(n, rule, w, s, T, markov, C, profile.steps, profile.tau)


def hidden_chain(share: float, time: float) -> LinearGaussianChain:
    """Returns the stationary chain of the states (x, z), both of variance 1."""
    a, b, one = math.exp(-1 / MEMORY), math.exp(-1 / time), torch.ones(1)

    def chain(g: float) -> LinearGaussianChain:
        A = torch.tensor([[a, g * math.sqrt(share)], [0, b]]).double()
        noise = torch.tensor([g**2 * (1 - share), 1 - b**2]).double()
        return LinearGaussianChain.stationary(A, 0 * one.expand(2), noise.diag())

    return chain(float(chain(1.0).first.covariance[0, 0]) ** -0.5)


def visible(share: float, time: float, length: int) -> Gaussian:
    """Returns the law of the visible states of a trajectory."""
    mean, covariance = hidden_chain(share, time).joint(length)
    return Gaussian(mean[::2], covariance[::2, ::2])


def markov_twin(law: Gaussian) -> Gaussian:
    """Returns the law of the Markov chain with the same law of two neighbours."""
    return make_chain(float(law.covariance[0, 1])).joint(len(law.mean))


def compose(rule: str, window: int, law: Gaussian, sde: VPSDE) -> nn.Module:
    """Returns the noise estimator composed of exact scores of windows, or the exact one."""
    if rule == EXACT:
        return GaussianEstimator(law, sde)
    k = max(window // 2, 1)
    how: Composition = Centre(k) if rule == CENTRE else Junction(window, k)
    network = MCScoreNet(1, order=k, composition=how, length_aware=True)
    n = network.window
    leading = Gaussian(law.mean[:n], law.covariance[:n, :n])
    network.kernel = WindowEstimator(leading, n, sde)  # type: ignore[assignment]
    return network


def precision(estimator: nn.Module, sde: VPSDE) -> Tensor:
    """Returns the matrix B of an estimator whose score of centred data, at the last noise level,
    is -B x. Of the exact score it is the precision, the inverse of the covariance."""
    n, zero = sde.shape.numel(), torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        columns = estimator(torch.eye(n, dtype=torch.float64).unsqueeze(-1), zero)
    return columns.squeeze(-1).T.contiguous() / sde.sigma(zero)


def langevin_limit(B: Tensor) -> Tensor | None:
    """Returns the covariance that Langevin dynamics with the score -B x converge to, or None where
    they do not."""
    if float(torch.linalg.eigvals(B).real.min()) <= 0:
        return None
    eye = torch.eye(len(B), dtype=B.dtype)
    # vec(B S + S B^T) = (B x I + I x B) vec(S)
    system = torch.kron(B, eye) + torch.kron(eye, B)
    S = torch.linalg.solve(system, 2 * eye.flatten()).reshape(B.shape)
    return (S + S.T) / 2


def divergence_of_limit(B: Tensor, law: Gaussian) -> float | None:
    """Returns the divergence from a centred law of what corrections converge to."""
    S = langevin_limit(B)
    return None if S is None else kl_divergence(Gaussian(law.mean, S), law)


def divergence_of_posterior(B: Tensor, law: Gaussian) -> float | None:
    """Returns that of posteriors from the true ones, the mean over observations."""
    H = torch.eye(len(law.mean), dtype=torch.float64)[::EVERY]
    R = STD**2 * torch.eye(len(H), dtype=torch.float64)
    truth = law.condition(H, R, 0 * H[:, 0])
    posterior = B + H.T @ H / STD**2
    spread = divergence_of_limit(posterior, truth)
    if spread is None:
        return None
    # means are linear in y, which has the covariance H S H^T + R
    gain = torch.linalg.solve(posterior, H.T) / STD**2 - truth.covariance @ H.T / STD**2
    shift = gain @ (H @ law.covariance @ H.T + R) @ gain.T
    return spread + float(torch.linalg.solve(truth.covariance, shift).trace()) / 2


def evaluate(cell: Cell) -> Record:
    """Returns the divergence of a law of samples from the truth."""
    law = visible(cell.share, cell.time, cell.length)
    law = markov_twin(law) if cell.markov else law
    sde = VPSDE(nn.Identity(), shape=(cell.length, 1))
    estimator = compose(cell.rule, cell.window, law, sde)

    if cell.corrections == LIMIT:
        B = precision(estimator, sde)
        return {"prior": divergence_of_limit(B, law), "posterior": divergence_of_posterior(B, law)}

    tau = cell.tau if cell.corrections else 1.0
    samples = sampler_law(sde, estimator, steps=cell.steps, corrections=cell.corrections, tau=tau)
    return {"kl": kl_divergence(samples, law)}


def nats(x: float | None) -> str:
    """Writes a divergence, which is not negative but for rounding."""
    if x is None:
        return "unstable"
    return f"{max(x, 0):.3f}" if x < 1 else number(x)


def limits(records: Sequence[Record]) -> list[Record]:
    """Returns the records of limits."""
    return [record for record in records if record["corrections"] == LIMIT]


def by_time(records: Sequence[Record], profile: Profile) -> str:
    """Writes the divergence of priors and posteriors over w and T."""
    mine = [r for r in limits(records) if r["share"] == profile.middle[0]]
    rows = []
    for (rule, w), group in study.group(mine, ("rule", "window")).items():
        found = {r["time"]: f"{nats(r['prior'])} / {nats(r['posterior'])}" for r in group}
        rows.append((rule, w, *(found[T] for T in profile.times)))
    return study.table(["", "w", *(f"T = {T:g}" for T in profile.times)], rows)


def least_window(records: Sequence[Record], profile: Profile) -> str:
    """Writes the smallest window from which on the memory lost costs little of a trajectory."""
    rows = []
    for (rule, s), group in study.group(limits(records), ("rule", "share")).items():
        chosen = []
        for T in profile.times:
            cost = {r["window"]: r["prior"] for r in group if r["time"] == T}
            dear = [w for w, x in cost.items() if x is None or x >= LITTLE]
            good = [w for w in cost if w > max(dear, default=0)]
            chosen.append(str(min(good)) if good else f"above {max(cost)}")
        rows.append((rule, f"{s:g}", *chosen))
    rows.sort(key=lambda row: (row[0] != CENTRE, float(row[1])))
    head = [f"smallest w below {LITTLE} nats", "s", *(f"T = {T:g}" for T in profile.times)]
    return study.table(head, rows)


def sampled(records: Sequence[Record]) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Returns what compositions add to the exact score, of the chain and of its twin, by rule,
    window and corrections."""
    found = {
        (r["rule"], r["window"], r["corrections"], r["markov"]): r["kl"]
        for r in records
        if r["corrections"] != LIMIT
    }
    return {
        (rule, w, C): (
            found[rule, w, C, False] - found[EXACT, 0, C, False],
            found[rule, w, C, True] - found[EXACT, 0, C, True],
        )
        for rule, w, C, markov in found
        if rule != EXACT and not markov
    }


def by_corrections(records: Sequence[Record], profile: Profile) -> str:
    """Writes what compositions add, over w and C."""
    costs = sampled(records)
    rows = []
    for rule in (CENTRE, JUNCTION):
        for w in profile.sampled:
            pairs = (costs[rule, w, C] for C in profile.corrections)
            rows.append((rule, w, *(" / ".join(map(number, pair)) for pair in pairs)))
    return study.table(["", "w", *(f"C = {C}" for C in profile.corrections)], rows)


def tables(records: Sequence[Record], profile: Profile) -> str:
    """Writes all tables."""
    s, T = profile.middle
    return "\n\n".join(
        (
            f"The chain with a hidden variable, {profile.length} states, in the limit of many "
            "corrections.",
            least_window(records, profile),
            f"The same for s = {s:g}, in nats: priors / posteriors, every {EVERY}th state observed "
            f"with a standard deviation of {STD}.",
            by_time(records, profile),
            f"Nats that a composition adds to the exact score, s = {s:g}, T = {T:g} / its Markov "
            f"twin: {profile.steps} steps, tau = {profile.tau:g}.",
            by_corrections(records, profile),
        )
    )


UNSTABLE = 1e3  # about this height is marked what no law is of


def draw_limit(panel: Any, records: Sequence[Record]) -> None:
    """Draws the limit against the window for each memory, above all what is unstable."""
    groups = study.group(records, ("time",))
    colours = study.shades(len(groups))
    for i, ((T,), group) in enumerate(groups.items()):
        good = [r for r in group if r["prior"] is not None]
        windows, costs = ([r[name] for r in good] for name in ("window", "prior"))
        panel.plot(windows, costs, "o-", color=colours[i], ms=4, label=f"T = {T:g}")
        lost = [r["window"] for r in group if r["prior"] is None]
        panel.plot(lost, [UNSTABLE * 1.6 ** (i - 3)] * len(lost), "x", color=colours[i], ms=4)
    panel.axhline(LITTLE, color="black", lw=0.8)
    panel.set(yscale="log", ylim=(1e-4, 2e4), xlabel="window w")


def draw_corrections(panel: Any, records: Sequence[Record], profile: Profile) -> None:
    """Draws what the junction rule adds against the corrections, of the chain and its twin."""
    added = sampled(records)
    colours = study.shades(len(profile.sampled))
    for w, colour in zip(profile.sampled, colours, strict=True):
        for of_twin, style in ((0, "o-"), (1, "s--")):
            costs = [added[JUNCTION, w, C][of_twin] for C in profile.corrections]
            label = None if of_twin else f"w = {w}"
            panel.plot(profile.corrections, costs, style, color=colour, ms=4, label=label)
    panel.set_xscale("symlog", linthresh=1)
    panel.set_xticks(profile.corrections, [f"{C}" for C in profile.corrections])
    panel.set(yscale="log", ylim=(1e-4, 2e4), xlabel="corrections C")


def draw(records: Sequence[Record], profile: Profile, axes: Sequence[Any]) -> None:
    """Draws the limit against the window, and what is added against the corrections."""
    s, T = profile.middle
    mine = [r for r in limits(records) if r["share"] == s]
    for panel, rule in zip(axes, (CENTRE, JUNCTION), strict=False):
        draw_limit(panel, [r for r in mine if r["rule"] == rule])
        panel.set_title(f"{rule}, in the limit", fontsize="medium")
    draw_corrections(axes[2], records, profile)
    axes[2].set_title(f"junction, T = {T:g}", fontsize="medium")

    ticks = {1e-4: "0.0001", 1e-2: "0.01", 1: "1", 100: "100"}
    axes[0].set_yticks([*ticks, UNSTABLE], [*ticks.values(), "unstable"])
    axes[0].set_ylabel(f"lost, s = {s:g} (nats)")
    for panel, name in zip(axes[1:], (None, "dashed: Markov twin"), strict=True):
        panel.set_yticks(list(ticks), list(ticks.values()))
        options = {"ncols": 2, "title": name, "title_fontsize": "small"}
        panel.legend(loc="upper right", **study.LEGEND | options)


def evaluate_all(out: Path, profile: Profile) -> list[Record]:
    """Computes what the folder does not hold yet."""
    return study.evaluate_all(out / "hidden_variable.jsonl", list(cells(profile)), evaluate)
