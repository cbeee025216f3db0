"""Times score networks: the forward pass and the vector-Jacobian product, against the operations.

The residual MLP on the windows of trajectories, width 128 and 256, depth 5, windows of 5 states,
trajectories of 65: the paper's Lorenz-63 network. And a U-Net on windows of two-dimensional fields.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sda_fast import MCScoreNet, ops
from sda_fast.score import sampling

from .workloads import Score, matmul_precision, mlp_network, mlp_score, relative_error, unet_score

SLOW = pytest.mark.slow
COMPILED = pytest.param("compiled", marks=SLOW)

each_kind = pytest.mark.parametrize("kind", ["forward", "vjp"])


def check(run: Callable[[], Tensor], expected: Tensor, code: str) -> None:
    """Compares a code with the eager network in float32."""
    half = code.endswith("bfloat16")
    with matmul_precision("medium" if half else "highest"):
        assert relative_error(run(), expected) < (5e-2 if half else 1e-4)


def evaluate(work: Score, kind: str, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return getattr(work, kind)(network)


@pytest.mark.parametrize(
    ("width", "batch", "code"),
    [
        pytest.param(width, batch, code, marks=[SLOW] * slow)
        for width in (128, 256)
        for batch in (1, 16, 128)
        for code in ("eager", "compiled", "native", "native bfloat16")
        for slow in [width == 128 or (code == "compiled" and batch != 16)]
    ],
)
@each_kind
def test_mlp(timed, kind: str, width: int, batch: int, code: str):
    work = mlp_score(batch, width)
    native = mlp_network(width)
    native.kernel.load_state_dict(work.network.kernel.state_dict())
    networks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "eager": work.network,
        "compiled": torch.compile(work.network, dynamic=False),
        "native": native,
        "native bfloat16": native,
    }

    def run() -> Tensor:
        return evaluate(work, kind, networks[code])

    with sampling(), ops.backend("native"):
        check(run, evaluate(work, kind, work.network), code)
        timed(f"mlp {kind}, width {width}, B = {batch}", code, run, flops=work.flops[kind])


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=SLOW)])
@pytest.mark.parametrize("code", ["eager", COMPILED, "channels last, bfloat16"])
@each_kind
def test_unet(timed, kind: str, side: int, code: str):
    work = unet_score(4, side)
    networks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"eager": work.network, **work.others}
    if code == "compiled":
        networks["compiled"] = torch.compile(work.network, dynamic=False)

    def run() -> Tensor:
        return evaluate(work, kind, networks[code])

    check(run, evaluate(work, kind, work.network), code)
    timed(f"U-Net {kind}, 4 windows of {side}²", code, run, flops=work.flops[kind])


def test_fused_is_what_is_timed():
    """The native code is one operator, not the module called as it is."""
    network: MCScoreNet = mlp_network(16)
    with sampling(), ops.backend("native"):
        assert not isinstance(network.fused(torch.zeros(1, 65, 3)), str)
