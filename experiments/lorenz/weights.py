"""What the modes of a posterior weigh, among a filter's particles and among members."""

import math
from collections.abc import Iterable, Sequence

import torch

from .. import study
from ..study import Record
from .cases import FILTER


def summarise(records: Sequence[Record], at: int) -> list[Record]:
    """Returns, for each setting, truth and sampler, the weights of the modes and how far they are
    apart, and that of a > 0 in the lobe of index `at`."""
    summaries = []
    for (setting, truth), group in study.group(records, ("setting", "truth")).items():
        filters = [r for r in group if r["method"] == FILTER]
        for ours in group:
            if ours["method"] != FILTER:
                names = {"setting": setting, "truth": truth, "sampler": label(ours)}
                summaries.append(names | compare(filters, ours, at))

    return summaries


def label(record: Record) -> str:
    """Names a sampler by its prior and recipe."""
    return f"{record['method']}, {record['recipe']}"


def compare(filters: Sequence[Record], ours: Record, at: int) -> Record:
    """Compares the modes of one posterior with those of the filter's runs."""
    if "error" in ours:
        return {"error": ours["error"]}

    runs = [weights(r["counts"]) for r in filters]
    sampled, n = weights(ours["counts"]), sum(ours["counts"].values())
    modes = sorted({mode for run in (*runs, sampled) for mode in run})
    per_run = torch.tensor([[run.get(mode, 0.0) for mode in modes] for run in runs])
    p, errors = per_run.mean(dim=0), per_run.std(dim=0) / math.sqrt(len(runs))
    q = torch.tensor([sampled.get(mode, 0.0) for mode in modes])
    positive = torch.tensor([mode[at] == "+" for mode in modes])

    known = p > 0
    inside = round(n * float(q[known].sum()))
    among = q[known] / q[known].sum() if inside else q[known]

    order = p.argsort(descending=True, stable=True).tolist()
    return {
        "members": n,
        "lost": ours["lost"],
        "of_truth": ours["of_truth"],
        "modes": [modes[i] for i in order],
        "p": p[order].tolist(),
        "errors": errors[order].tolist(),
        "q": q[order].tolist(),
        "log_prior": [
            mean_log_prior(
                ours, [m for m, k in zip(modes, known.tolist(), strict=True) if k == which]
            )
            for which in (True, False)
        ],
        "tv": float((p - q).abs().sum() / 2),
        "floor": floor(p, n),
        "known_tv": float((p[known] - among).abs().sum() / 2),
        "known_floor": floor(p, inside),
        "missed": float(p[q == 0].sum()),
        "invented": float(q[p == 0].sum()),
        "positive": (float(p[positive].sum()), float(q[positive].sum())),
        "positive_error": float(per_run[:, positive].sum(dim=1).std() / math.sqrt(len(runs))),
        "filter": filters[0]["shown"],
        "ours": ours["shown"],
        "truth_a": ours["truth_a"],
    }


def mean_log_prior(record: Record, modes: Iterable[str]) -> float | None:
    """Returns the mean log prior of the members that are in some modes, or None of none."""
    counts = {mode: record["counts"][mode] for mode in modes if mode in record["counts"]}
    total = sum(record["log_priors"][mode] * n for mode, n in counts.items())
    return total / sum(counts.values()) if counts else None


def floor(p: torch.Tensor, n: int, draws: int = 1000) -> float | None:
    """Returns the median total variation distance from p of n independent draws of it."""
    if n == 0:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(p, draws * n, True, generator=generator).reshape(draws, n)
    share = torch.stack([(drawn == i).float().mean(dim=1) for i in range(len(p))], dim=1)
    return float(((share - p).abs().sum(dim=1) / 2).median())


def weights(counts: dict[str, int]) -> dict[str, float]:
    """Normalises counts."""
    total = sum(counts.values())
    return {mode: count / total for mode, count in counts.items()}


def binomial(p: float, n: int) -> float:
    """Returns the standard error of a share of n draws."""
    return math.sqrt(p * (1 - p) / n)
