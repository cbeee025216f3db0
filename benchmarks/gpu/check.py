"""Runs every operator once on tensors of a few sizes and types, and a fused network at each
precision, against the reference in float64.

    python -m benchmarks.gpu.check [--device cpu]

Small enough to run under compute-sanitizer, whose exit code then tells of the kernels, while this
program's tells of the numbers.
"""

import argparse
import copy
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sda_fast import MCScoreNet, ops

from ..turns import matmul_precision
from ..workloads import relative_error
from .cases import DTYPES, TINY, Case, operator_cases

FLOW = (3, 2, 8, 12)


def wide(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def problem(case: Case, twin: Case, dtype: torch.dtype) -> str | None:
    """Compares an operator with its twin on the CPU in float64, and says what differs.

    What noise it draws is counter-based, so that it is the same on both.
    """
    arguments = case.draw()
    results = case.results(arguments)
    if case.bytes(arguments) <= 0:
        return "it moves no bytes"
    with ops.backend("reference"):
        expected = twin.results([wide(x) for x in arguments])
    for y, z in zip(results, expected, strict=True):
        error = (wide(y) - z).norm() / z.norm().clamp(min=1e-30)
        limit = 1e-5 if dtype == torch.float32 else 2e-2
        if not error <= limit:  # NaN is not
            return f"its relative error is {float(error):.2g}, above {limit:.0e}"
    return None


# What a network's error may be at each precision of products.
PRECISIONS = {"highest": 1e-5, "high": 5e-3, "medium": 5e-2}


def networks(device: str) -> Iterator[tuple[str, str | None]]:
    """Yields of `mlp_score` and of its gradient at each precision the name, and what differs."""
    for aware in (False, True):
        rules = {"composition": "junction", "length_aware": True} if aware else {}
        sizes = {"embedding": 8, "hidden_features": [40, 72], "activation": nn.SiLU}
        network = MCScoreNet(3, order=2, **rules, **sizes).requires_grad_(False)
        twin = copy.deepcopy(network).double()
        x, v = torch.randn(2, 3, 33, 3)
        t = torch.tensor(0.5)
        with ops.backend("reference"):
            eps, vjp = twin.linearise(x.double(), t.double())
            expected = {"mlp_score": eps, "mlp_score_vjp": vjp(v.double())}

        network.to(device)
        for precision, limit in PRECISIONS.items():
            with matmul_precision(precision), ops.backend("native"):
                eps, vjp = network.linearise(x.to(device), t.to(device))
                results = {"mlp_score": eps, "mlp_score_vjp": vjp(v.to(device))}
                served = network.fused(x.to(device), t.to(device))
            for name, result in results.items():
                error = relative_error(result.cpu(), expected[name])
                why = None if error <= limit else f"its relative error is {error:.2g}"
                yield f"{name}, {precision}", served if isinstance(served, str) else why


def main() -> int:
    parser = argparse.ArgumentParser(description="Check every operator on a device.")
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    torch.manual_seed(0)

    count = bad = 0
    for size, shape in TINY.items():
        for dtype in DTYPES:
            # drawn alike, so that places and variances are the same numbers
            torch.manual_seed(1)
            cases = list(operator_cases(shape, dtype, device, FLOW))
            torch.manual_seed(1)
            twins = list(operator_cases(shape, torch.float64, "cpu", FLOW))
            for case, twin in zip(cases, twins, strict=True):
                with torch.no_grad(), ops.backend("native"):
                    why = problem(case, twin, dtype)
                count += 1
                bad += why is not None
                if why is not None:
                    print(f"{case.name}, {size}, {dtype}: {why}")

    torch.manual_seed(1)
    for name, why in networks(device):
        count += 1
        bad += why is not None
        if why is not None:
            print(f"{name}: {why}")

    print(f"{count - bad} of {count} operator calls agree with the reference")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
