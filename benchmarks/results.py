"""Results on disk: what was measured, on which machine, of which commit, how busy it was.

A file of timings in `benchmarks/results/` is made from pytest-benchmark's JSON and keeps of each
case its suite, its group, its code ("eager" is the reference or the published method, "compiled"
the same by torch.compile), its threads, the median and the quartiles of its seconds, and its
operations and bytes. What a length costs, where the time goes, and runs on a GPU have formats of
their own.
"""

__all__ = ["FOLDER", "committed", "convert", "facts", "floor", "groups", "load", "save", "stamp"]

import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sda_fast import _native
from sda_fast.io import atomic_write

TIMINGS, MEMORY = "sda_fast timings 1", "sda_fast memory 1"
PROFILE, GPU = "sda_fast profile 1", "sda_fast gpu 1"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"

Result = dict[str, Any]


def git(*arguments: str) -> str | None:
    """Returns what git says of this tree, or None where it says nothing or there is none."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """Returns the processor's name."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines())
    lines = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    name = lines.get("model name", platform.machine())
    if {"cpu family", "model"} <= lines.keys():
        name += f" (family {lines['cpu family']}, model {lines['model']})"
    return name


def facts(device: str, threads: int) -> dict[str, Any]:
    """Returns what a measurement depends on."""
    native = _native.info()
    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "isa": native["isa"],
        "compiler": native["compiler"],
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
    }


def stamp(form: str, machine: dict[str, Any], before: float) -> Result:
    """Returns the head of a result that was measured just now.

    Arguments:
        form: The format.
        machine: The machine's facts.
        before: The machine's load before.
    """
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "format": form,
        "date": datetime.now(timezone.utc).isoformat()[:19],
        "commit": (git("rev-parse", "HEAD") or "unknown")[:10],
        "changed": status is None or bool(status),
        "machine": machine,
        "load": [round(before, 2), round(os.getloadavg()[0], 2)],
    }


def convert(content: dict[str, Any]) -> Result:
    """Makes a result of pytest-benchmark's JSON, of the cases that name their suite."""
    ours = content["machine_info"]["sda_fast"]
    named = [b for b in content["benchmarks"] if "suite" in b["extra_info"]]
    return {**ours, "cases": [_case(b) for b in named]}


def _case(benchmark: dict[str, Any]) -> dict[str, Any]:
    stats, extra = benchmark["stats"], benchmark["extra_info"]
    names = {name: extra[name] for name in ("suite", "code", "threads")}
    numbers = {name: stats[name] for name in ("median", "q1", "q3", "min", "max", "rounds")}
    known = ("flops", "bytes", "bfloat16", "in_place")
    work = {name: extra[name] for name in known if extra.get(name)}
    return {"group": benchmark["group"], **names, **numbers, **work}


def save(result: Result, folder: Path = FOLDER) -> Path:
    """Writes a result under a name of its own, and returns it."""
    name = re.sub(r"\W+", "-", result["machine"]["processor"].lower()).strip("-")
    kind = result["format"].split()[1]
    suites = {case["suite"] for case in result.get("cases", ()) if "suite" in case}
    if len(suites) == 1:
        kind += f"-{suites.pop()}"
    stem = f"{kind}-{result['date'][:10]}-{result['commit']}-{name[:40]}"
    folder.mkdir(parents=True, exist_ok=True)
    path, count = folder / f"{stem}.json", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}.json"
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def load(path: Path, form: str = TIMINGS) -> Result:
    """Reads a result.

    Raises:
        ValueError: The file is not one.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != form:
        raise ValueError(f"{path} must be a file of format {form!r}, of benchmarks/results")
    return content


def committed(form: str = TIMINGS, folder: Path = FOLDER) -> list[Path]:
    """Lists the results that are committed as they are, the oldest first."""
    known = (git("ls-files", "--", str(folder)) or "").splitlines()
    changed = (git("diff", "--name-only", "HEAD", "--", str(folder)) or "").splitlines()
    dates = {}
    for name in known:
        if name.endswith(".json") and name not in changed:
            content = json.loads((ROOT / name).read_text())
            if content["format"] == form:
                dates[ROOT / name] = content["date"]
    return sorted(dates, key=lambda path: dates[path])


def groups(result: Result) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the cases by group and code."""
    by_group: dict[str, dict[str, dict[str, Any]]] = {}
    for case in result["cases"]:
        by_group.setdefault(case["group"], {})[case["code"]] = case
    return by_group


def floor(case: dict[str, Any], floors: dict[str, Any]) -> float | None:
    """Returns the least seconds that the operations and bytes of a case take, if they are known."""
    one = "_one" if case.get("threads") == 1 and floors.get("copy_one") else ""
    kind = "bfloat16" if case.get("bfloat16") else case.get("code", "").rpartition(" ")[2]
    peak = (kind in ("bfloat16", "tf32") and floors.get(f"{kind}{one}")) or floors[f"float32{one}"]
    memory = (case.get("in_place") and floors.get(f"update{one}")) or floors[f"copy{one}"]
    work = ((case.get("flops"), peak), (case.get("bytes"), memory))
    return max((n / rate for n, rate in work if n and rate), default=None)
