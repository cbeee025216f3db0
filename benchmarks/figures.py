"""Figures of the benchmarks: bars of a suite's groups, and time against the number of samples."""

__all__ = ["COLOURS", "draw_bars", "draw_scaling"]

import re
from pathlib import Path
from typing import Any

from .results import floor
from .text import seconds

COLOURS = {"eager": "#9aa5b1", "compiled": "#d1a03b", "native": "#3b6ea8"}
OTHER = ("#7fb069", "#d1622b", "#8a5fa8", "#4aa8a0", "#b86a92")

Groups = dict[str, dict[str, dict[str, Any]]]


def palette(groups: Groups) -> dict[str, str]:
    """Returns a colour for each code, the three of all suites first."""
    names = dict.fromkeys([*COLOURS, *(code for codes in groups.values() for code in codes)])
    others = (name for name in names if name not in COLOURS)
    colours = COLOURS | dict(zip(others, 3 * OTHER, strict=False))
    used = {code for codes in groups.values() for code in codes}
    return {name: colour for name, colour in colours.items() if name in used}


def draw_bars(groups: Groups, floors: dict[str, Any], path: Path) -> None:
    """Draws the bars of groups, relative to the slowest of each, with the quartiles and, as a line,
    the floor."""
    from matplotlib.figure import Figure

    colours = palette(groups)
    bars = sum(map(len, groups.values()))
    size = (8, 0.9 + 0.2 * bars + 0.15 * len(groups))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panel = figure.subplots()
    y, ticks = 0.0, []
    for group, codes in groups.items():
        slowest = max(case["median"] for case in codes.values())
        first = y
        for name in colours:
            if name not in codes:
                continue
            case = codes[name]
            value, q1, q3 = (case[key] / slowest for key in ("median", "q1", "q3"))
            panel.barh(y, value, height=0.85, color=colours[name])
            spread = [[value - q1], [q3 - value]]
            panel.errorbar(value, y, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
            panel.annotate(
                seconds(case["median"]), (q3, y), (6, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
            least = floor(case, floors)
            if least is not None:
                panel.vlines(least / slowest, y - 0.42, y + 0.42, color="black", lw=1.2)
            y += 1
        ticks.append(((first + y - 1) / 2, group))
        y += 0.7

    panel.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_xlim(left=0)
    panel.set_xlabel(
        "time, relative to the slowest of a group; a black line is the floor", fontsize=8
    )
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    for name, colour in colours.items():
        panel.barh(0, 0, color=colour, label=name)
    panel.legend(
        ncols=min(len(colours), 3), frameon=False, fontsize=8, loc="lower left",
        bbox_to_anchor=(0, 1), borderaxespad=0.2,
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None})


def draw_scaling(groups: Groups, path: Path) -> bool:
    """Draws the time of a Lorenz-63 sample against how many are drawn at once, with one correction
    a step and the most threads; returns whether there were any."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, dict[int, float]]] = {"prior": {}, "posterior": {}}
    shown: Groups = {}
    for group, codes in groups.items():
        found = re.match(r"Lorenz-63 (prior|posterior), B = (\d+), C = 1 ", group)
        if found is None:
            continue
        law, batch = found[1], int(found[2])
        shown[group] = codes
        for code, case in codes.items():  # of several threads the last, which are most
            curves[law].setdefault(code, {})[batch] = case["median"] / batch
    if not any(len(times) > 1 for law in curves.values() for times in law.values()):
        return False

    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (law, by_code) in zip(panels, curves.items(), strict=True):
        for name, colour in palette(shown).items():
            times = sorted(by_code.get(name, {}).items())
            if times:
                x, y = zip(*times, strict=True)
                panel.loglog(x, [1e3 * t for t in y], "o-", color=colour, ms=4, label=name)
        panel.set_title(law, fontsize=9)
        panel.set_xlabel("samples drawn at once", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms a sample, 16 score evaluations", fontsize=8)
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Software": None})
    return True
