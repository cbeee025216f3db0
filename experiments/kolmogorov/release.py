"""Completes the record of a trained prior, so that one file says how it was made.

    python -m experiments.kolmogorov.release kolmogorov-32.safetensors --data kolmogorov-32.h5 \
        --out sda_fast/weights/kolmogorov-32.safetensors

To the options and validation errors of the training are added the recipe of the data set and the
validation curve, from the training's `NAME.metrics.csv`. Parameters are kept in half precision.
"""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sda_fast.data import Trajectories
from sda_fast.io import build_network, read_record, save_prior


def curve(path: Path, last: int) -> list[dict[str, float]]:
    """Reads the training's losses up to an iteration."""
    with path.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [
        {"iteration": int(row["iteration"]), "loss": row["loss"], "valid": row["valid"]}
        for row in rows
        if row["iteration"] <= last
    ]


def release(prior: Path, data: Path, out: Path) -> dict[str, Any]:
    """Writes a prior with its complete record, which it returns."""
    record = read_record(prior)
    name = prior.name.removesuffix(".safetensors").removesuffix(".best")
    trajectories = Trajectories(data, system=record["system"])

    record["training"]["data"] = data.name
    record["data"] = asdict(trajectories.recipe) | {"dt": trajectories.dt}
    record["curve"] = curve(prior.with_name(f"{name}.metrics.csv"), record["training"]["iteration"])

    network = build_network(record["network"])
    network.load_state_dict(load_file(prior))
    save_prior(out, network, record, half=True)

    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Completes the record of a trained prior.")
    parser.add_argument("prior", type=Path, help="what `sda_fast train` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the data set it was trained on")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()

    record = release(arguments.prior, arguments.data, arguments.out)
    size = arguments.out.stat().st_size / 1e6
    print(
        f"wrote {arguments.out}, {size:.1f} MB: {record['training']['iteration']} iterations, "
        f"validation error {record['curve'][-1]['valid']:.4f}"
    )


if __name__ == "__main__":
    main()
