"""Figures of the benchmarks: bars of a suite's groups, and time against the number of samples."""

__all__ = ["COLOURS", "draw_bars", "draw_scaling"]

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from experiments.study import plain_ticks

from .results import floor
from .text import seconds

COLOURS = {"eager": "#9aa5b1", "compiled": "#d1a03b", "native": "#3b6ea8"}
# those of the codes that several figures have, and of the others
OTHER = {"native bfloat16": "#56b4e9", "azula": "#d55e00", "sda": "#8a5fa8"}
REST = ("#009e73", "#cc79a7", "#f0e442")
SHAPES = "os^vDP*"

Groups = dict[str, dict[str, dict[str, Any]]]


def palette(groups: Groups) -> dict[str, str]:
    """Returns a colour for each code, the three of all suites first."""
    used = dict.fromkeys(code for codes in groups.values() for code in codes)
    known = COLOURS | OTHER
    rest = zip((code for code in used if code not in known), 3 * REST, strict=False)
    return {code: colour for code, colour in (known | dict(rest)).items() if code in used}


def shared_end(names: Iterable[str]) -> str:
    """Returns the words that all names end with."""
    backwards = [name.split()[::-1] for name in names]
    same = takewhile(lambda words: len(set(words)) == 1, zip(*backwards, strict=False))
    return " ".join([words[0] for words in same][::-1])


def draw_bar(panel: Any, y: float, case: dict[str, Any], scale: float, least: float | None) -> None:
    """Writes a bar's time behind it, and draws its quartiles and the floor."""
    value, q1, q3 = (case[key] / scale for key in ("median", "q1", "q3"))
    spread = [[value - q1], [q3 - value]]
    panel.errorbar(value, y, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
    end = q3
    if least is not None:
        panel.vlines(least / scale, y - 0.42, y + 0.42, color="black", lw=1.2, label="floor")
        end = max(q3, least / scale)
    panel.annotate(
        seconds(case["median"]), (end, y), (4, 0),
        textcoords="offset points", va="center", fontsize=8,
    )  # fmt: skip


def draw_bars(groups: Groups, floors: dict[str, Any], path: Path) -> None:
    """Draws the bars of groups, relative to the slowest of each, with the quartiles and, as a line,
    the floor. What the names of all groups end with stands above."""
    from matplotlib.figure import Figure

    colours, end = palette(groups), shared_end(groups)
    bars = sum(map(len, groups.values()))
    size = (8, 1.1 + 0.2 * bars + 0.14 * len(groups))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panel = figure.subplots()
    y, ticks = 0.0, []
    for group, codes in groups.items():
        slowest = max(case["median"] for case in codes.values())
        first = y
        for name in [name for name in colours if name in codes]:
            case = codes[name]
            share = case["median"] / slowest
            panel.barh(y, share, height=0.85, color=colours[name], label=name)
            draw_bar(panel, y, case, slowest, floor(case, floors))
            y += 1
        ticks.append(((first + y - 1) / 2, group.removesuffix(end).rstrip(" ,")))
        y += 0.7

    panel.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    panel.set_ylim(y - 0.9, -0.8)
    panel.set_xlim(0, 1.1 * panel.get_xlim()[1])  # times stand behind the bars
    panel.set_xlabel("time, relative to the slowest of a group", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    names = [name for name in (*colours, "floor") if name in handles]
    figure.legend(
        [handles[name] for name in names], names, title=end, title_fontsize=9, fontsize=8,
        ncols=4, frameon=False, loc="outside upper center",
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
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (law, by_code) in zip(panels, curves.items(), strict=True):
        for (name, colour), shape in zip(palette(shown).items(), SHAPES, strict=False):
            times = sorted(by_code.get(name, {}).items())
            if times:
                x, y = zip(*times, strict=True)
                panel.loglog(x, [1e3 * t for t in y], f"{shape}-", color=colour, ms=5, label=name)
                plain_ticks(panel.xaxis, x)
        panel.set_title(law, fontsize=10)
        panel.set_xlabel("samples drawn at once", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    plain_ticks(panels[0].yaxis)
    panels[0].set_ylabel("time of a sample (ms)", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, ncols=4, frameon=False, loc="outside lower center")
    figure.savefig(path, metadata={"Software": None})
    return True
