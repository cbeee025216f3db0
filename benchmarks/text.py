"""Numbers as they are written in tables."""

__all__ = ["DISTURBED", "amount", "disturbed", "rates", "rates_in_words", "ratio", "seconds"]

from collections.abc import Iterator
from typing import Any

# A ratio whose quartiles lie apart by this factor is no number.
DISTURBED = 3.0


def seconds(value: float | None) -> str:
    """Writes a time with three digits."""
    if value is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{1e9 * value:.0f} ns"


def amount(value: float, unit: str) -> str:
    """Writes a number of operations or bytes with three digits."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.0f} {unit}"


def ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None) -> str:
    """Writes how many times faster a case is than another: of the medians, and in brackets of the
    quartiles that lie nearest and farthest; these alone where they lie apart by :data:`DISTURBED`
    and more."""
    if slow is None or fast is None or slow is fast:
        return ""
    low, high = extremes(slow, fast)
    if high >= DISTURBED * low:
        return f"{low:.2f} to {high:.2f}"
    return f"{slow['median'] / fast['median']:.2f} ({low:.2f}-{high:.2f})"


def extremes(slow: dict[str, Any], fast: dict[str, Any]) -> tuple[float, float]:
    """Returns the ratios of the quartiles that lie nearest and farthest."""
    return slow["q1"] / fast["q3"], slow["q3"] / fast["q1"]


def disturbed(codes: dict[str, dict[str, Any]]) -> bool:
    """Says whether the machine did something else while codes were timed by turns, by how far they
    scatter."""
    own = codes.get("native")
    others = [codes[name] for name in ("eager", "compiled") if name in codes]
    ranges = [extremes(other, own) for other in others] if own is not None else []
    return any(high >= DISTURBED * low for low, high in ranges)


def rates(floors: dict[str, Any]) -> list[str]:
    """Writes the floors as a table."""

    def giga(name: str) -> str:
        return "not measured" if floors.get(name) is None else f"{floors[name] / 1e9:,.0f}"

    def cycle(name: str) -> str:
        if not floors.get("clock") or not floors.get(name):
            return ""
        return f"{floors[name] / floors['clock']:.0f}"

    threads = floors["threads"]
    return [
        f"| | one thread | {threads} thread{'s' * (threads > 1)} | one thread, a cycle |",
        "| --- | --- | --- | --- |",
        *(
            f"| {title}, {unit} | {giga(f'{name}_one')} | {giga(name)} | {cycle(f'{name}_one')} |"
            for name, title, unit in measured(floors)
        ),
    ]


def rates_in_words(floors: dict[str, Any]) -> str:
    """Writes the floors as a sentence."""

    def giga(name: str, title: str, unit: str) -> str:
        numbers = [floors.get(f"{name}_one"), floors[name]]
        known = [f"{number / 1e9:,.0f}" for number in numbers if number]
        return f"{title} {' and '.join(known)} {unit}"

    known = [giga(*rate) for rate in measured(floors) if floors.get(rate[0])]
    by = "one thread" + (f" and by {floors['threads']}" if floors["threads"] > 1 else "")
    return f"The machine's rates, by {by}: {', '.join(known)}."


def measured(floors: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the name, the title and the unit of each floor. Some only some devices have."""
    for name, title, unit in (
        ("float32", "float32 multiply-adds", "GFLOP/s"),
        ("tf32", "TF32 products", "GFLOP/s"),
        ("bfloat16", "bfloat16 products", "GFLOP/s"),
        ("copy", "copy, read and written", "GB/s"),
        ("update", "addition in place", "GB/s"),
    ):
        if name not in ("tf32", "update") or floors.get(name):
            yield name, title, unit
