"""What the project aims at on a CPU, held against what was measured."""

__all__ = ["TARGETS", "Target", "table"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .results import Result, floor, groups
from .text import extremes, ratio


@dataclass(frozen=True)
class Target:
    """How many times as fast as another code one is to be, or how near the floor.

    Arguments:
        suite: The suite that measures it.
        case: The name of the case.
        least: The aim.
        code: The code.
        other: The other one, or "floor" where the aim is a share of the processor's rate.
    """

    suite: str
    case: str
    least: float
    code: str = "native"
    other: str = "eager"


def _targets() -> Iterator[Target]:
    for batch, least in ((1, 3.0), (16, 4.0), (256, 4.0)):
        yield Target("lorenz63", f"Lorenz-63 posterior, B = {batch}, C = 1", least)
    for kind in ("forward", "vjp"):
        for width in (256, 128):
            for batch, least in ((1, 3.0), (128, 4.0)):
                yield Target("networks", f"MLP {kind}, width {width}, B = {batch}", least)
            case = f"MLP {kind}, width {width}, B = 128"
            yield Target("networks", case, 6.0, "native bfloat16")
            yield Target("networks", case, 0.8, other="floor")
        for channels, single, half in (((32, 64, 128), 1.6, 2.2), ((96, 192, 384), 1.25, 1.8)):
            case = f"U-Net {channels} {kind}, 4 windows of 64²"
            yield Target("unet", case, single)
            yield Target("unet", case, half, "native bfloat16")
            yield Target("unet", case, 1.0, other="compiled")
    for name, least in (
        ("langevin_", 10.0),
        ("langevin", 10.0),
        ("predictor", 3.0),
        ("compose_denoise", 3.0),
        ("philox_normal_", 4.0),
    ):
        yield Target("operators", f"{name} large float32", least)


TARGETS = tuple(_targets())


def table(found: Mapping[str, Result]) -> list[str]:
    """Makes the table of targets.

    Arguments:
        found: The results of suites.
    """
    lines = [["case", "code", "aim", "measured", "reached", "at the floor"]]
    lines.append(["---"] * len(lines[0]))
    for target in TARGETS:
        result = found.get(target.suite)
        for group, codes in groups(result).items() if result is not None else ():
            if group.startswith(f"{target.case} (") and target.code in codes:
                told = _told(target, codes, result["floors"])
                lines += [[group, target.code, *told]] if told else []
    return ["| " + " | ".join(line) + " |" for line in lines]


def _told(target: Target, codes: Mapping[str, Any], floors: Any) -> list[str]:
    """Says whether a target is reached, and what the machine allows where that is arithmetic, or
    nothing if it was not measured."""
    own, other = codes[target.code], codes.get(target.other)
    least = floor(own, floors) if own.get("flops") else None
    if target.other == "floor" and least is not None:
        share = least / own["median"]
        reached = "yes" if share >= target.least else "no"
        return [f"{target.least:.0%} of the floor", f"{share:.0%}", reached, ""]
    if other is None:
        return []

    _, high = extremes(other, own)
    reached = "within the scatter" if high >= target.least else "no"
    if other["median"] >= target.least * own["median"]:
        reached = "yes"
    # a U-Net's operations are those of direct convolutions, of which the native code takes fewer
    bound = least is not None and target.suite != "unet"
    at_the_floor = f"{other['median'] / least:.2f}" if bound else ""
    return [f"{target.least:g} times {target.other}", ratio(other, own), reached, at_the_floor]
