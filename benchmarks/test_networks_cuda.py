"""Times the residual MLP on the windows of trajectories on a GPU, fused against the eager module.

Width 128 and 256, depth 5, windows of 5 states, trajectories of 65: the paper's Lorenz-63 network,
at each precision of products. `extra_info` has the operations a second, and of a large matrix
product in the same precision: their ratio is the achieved fraction of the peak.
"""

from collections.abc import Callable, Iterator
from time import perf_counter

import pytest
import torch
from torch import Tensor, nn

from sda_fast import MCScoreNet, ops
from sda_fast.score import sampling

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

TOLERANCE = {"highest": 1e-3, "high": 5e-3, "medium": 5e-2}


@pytest.fixture(params=list(TOLERANCE))
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def seconds(run: Callable[[], Tensor], repeats: int = 10) -> float:
    """Times a call, several in flight at once."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (perf_counter() - start) / repeats


def matrix_peak(precision: str) -> float:
    """Returns the operations a second of a large matrix product."""
    dtype = torch.bfloat16 if precision == "medium" else torch.float32
    a, b = torch.randn(2, 8192, 8192, device="cuda").to(dtype)
    return 2 * 8192**3 / seconds(lambda: a @ b)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "guided"])
@pytest.mark.parametrize("batch", [1, 16, 128, 1024])
@pytest.mark.parametrize("width", [128, 256])
def test_mlp_cuda(
    benchmark, precision: str, width: int, batch: int, gradient: bool, backend: str
) -> None:
    torch.manual_seed(0)
    network = MCScoreNet(
        3, order=2, embedding=32, hidden_features=[width] * 5, activation=nn.SiLU
    ).requires_grad_(False)
    network = network.cuda()
    x, cotangent = torch.randn(2, batch, 65, 3, device="cuda")
    t = torch.tensor(0.5, device="cuda")

    def run() -> Tensor:
        if not gradient:
            with torch.no_grad():
                return network(x, t)
        _, vjp = network.linearise(x, t)
        return vjp(cotangent)

    with sampling():
        with ops.backend("reference"):
            expected = run()
        with ops.backend(backend):
            error = float((run() - expected).norm() / expected.norm())
            assert error < TOLERANCE[precision]

            weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
            operations = 2 * sum(w.numel() for w in weights[2:])  # behind the embedding's
            operations *= batch * len(network.plan(65)) * (2 if gradient else 1)
            kind = "guided" if gradient else "forward"
            benchmark.group = f"mlp {kind} on CUDA, {precision}, width {width}, B = {batch}"
            benchmark.extra_info["operations a second"] = operations / seconds(run)
            benchmark.extra_info["of a matrix product"] = matrix_peak(precision)

            def finished() -> None:
                run()
                torch.cuda.synchronize()

            benchmark(finished)
