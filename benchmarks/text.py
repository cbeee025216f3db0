"""Numbers as they are written in tables."""

__all__ = ["amount", "rates", "ratio", "seconds"]

from typing import Any


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
    quartiles that lie nearest and farthest."""
    if slow is None or fast is None or slow is fast:
        return ""
    low, high = slow["q1"] / fast["q3"], slow["q3"] / fast["q1"]
    return f"{slow['median'] / fast['median']:.2f} ({low:.2f}-{high:.2f})"


def rates(floors: dict[str, Any]) -> list[str]:
    """Writes the floors as a table."""

    def giga(name: str) -> str:
        return "not measured" if floors.get(name) is None else f"{floors[name] / 1e9:,.0f}"

    def cycle(name: str) -> str:
        if not floors.get("clock") or not floors.get(name):
            return ""
        return f"{floors[name] / floors['clock']:.0f}"

    rows = {
        "float32 multiply-adds, GFLOP/s": "float32",
        **({"TF32 products, GFLOP/s": "tf32"} if floors.get("tf32") else {}),
        "bfloat16 products, GFLOP/s": "bfloat16",
        "copy, read and written, GB/s": "copy",
        **({"addition in place, GB/s": "update"} if floors.get("update") else {}),
    }
    threads = floors["threads"]
    return [
        f"| | one thread | {threads} thread{'s' * (threads > 1)} | one thread, a cycle |",
        "| --- | --- | --- | --- |",
        *(
            f"| {title} | {giga(f'{name}_one')} | {giga(name)} | {cycle(f'{name}_one')} |"
            for title, name in rows.items()
        ),
    ]
