"""Results on disk: what was measured, on which machine, of which commit, how busy it was.

A file of `benchmarks/results/` is made from pytest-benchmark's JSON and keeps of each case its
group, its code ("eager" is the reference or the published method, "compiled" the same by
torch.compile), the median and the quartiles of its seconds, and its operations and bytes.
"""

__all__ = ["FOLDER", "committed", "convert", "floor", "groups", "load", "save"]

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sda_fast.io import atomic_write

FORMAT = "sda_fast benchmark 1"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"

# What the operators' suite calls the sides of a case, by the name of the parameter.
CODES = {"native": "native", "reference": "eager", "torch": "eager"}

Result = dict[str, Any]


def git(*arguments: str) -> str | None:
    """Returns what git says of this tree, or None where it says nothing."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def convert(content: dict[str, Any]) -> Result:
    """Makes a result of pytest-benchmark's JSON."""
    machine, ours = content["machine_info"], content["machine_info"]["sda_fast"]
    native = ours["native"]
    commit = content["commit_info"]
    return {
        "format": FORMAT,
        "date": content["datetime"][:19],
        "commit": (commit.get("id") or "unknown")[:10],
        "changed": commit.get("dirty"),
        "machine": {
            "processor": machine["cpu"].get("brand_raw", machine.get("processor", "unknown")),
            "isa": native.get("isa"),
            "compiler": native.get("compiler"),
            "system": machine["system"],
            "python": machine["python_version"],
            "torch": ours["torch"],
            "threads": ours["threads"],
        },
        "load": [round(n, 2) for n in ours["load"]],
        "floors": ours["floors"],
        "cases": [_case(b) for b in content["benchmarks"]],
    }


def _case(benchmark: dict[str, Any]) -> dict[str, Any]:
    stats, extra = benchmark["stats"], benchmark["extra_info"]
    sides = (benchmark["params"] or {}).values()
    code = extra.get("code") or next((CODES[s] for s in sides if s in CODES), "eager")
    numbers = {name: stats[name] for name in ("median", "q1", "q3", "min", "max", "rounds")}
    work = {name: extra[name] for name in ("flops", "bytes", "bfloat16") if extra.get(name)}
    return {"group": benchmark["group"], "code": code, **numbers, **work}


def save(result: Result, folder: Path = FOLDER) -> Path:
    """Writes a result under a name of its own, and returns it."""
    processor = re.sub(r"\W+", "-", result["machine"]["processor"].lower()).strip("-")
    stem = f"{result['date'][:10]}-{result['commit']}-{processor[:40]}"
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(1 for _ in folder.glob(f"{stem}*.json"))
    path = folder / f"{stem}{f'-{count + 1}' if count else ''}.json"
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def load(path: Path) -> Result:
    """Reads a result.

    Raises:
        ValueError: The file is not one.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} must be a file of format {FORMAT!r}, of benchmarks/results")
    return content


def committed(folder: Path = FOLDER) -> list[Path]:
    """Lists the results that are committed as they are, the oldest first."""
    known = (git("ls-files", "--", str(folder)) or "").splitlines()
    changed = (git("diff", "--name-only", "HEAD", "--", str(folder)) or "").splitlines()
    paths = [ROOT / n for n in known if n.endswith(".json") and n not in changed]
    return sorted(
        (p for p in paths if json.loads(p.read_text()).get("format") == FORMAT),
        key=lambda p: load(p)["date"],
    )


def groups(result: Result) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the cases by group and code."""
    by_group: dict[str, dict[str, dict[str, Any]]] = {}
    for case in result["cases"]:
        by_group.setdefault(case["group"], {})[case["code"]] = case
    return by_group


def floor(case: dict[str, Any], floors: dict[str, Any]) -> float | None:
    """Returns the least seconds that the operations and bytes of a case take, if they are known."""
    peak = floors["bfloat16" if case.get("bfloat16") and floors["bfloat16"] else "float32"]
    work: Sequence[tuple[Any, Any]] = (
        (case.get("flops"), peak),
        (case.get("bytes"), floors["copy"]),
    )
    return max((n / rate for n, rate in work if n and rate), default=None)
