"""Times the residual MLP on the windows of trajectories, fused against the eager module.

Width 128 and 256, depth 5, windows of 5 states, trajectories of 65: the paper's Lorenz-63 network.
"""

import pytest
import torch
from torch import nn

from sda_fast import MCScoreNet, ops
from sda_fast.score import sampling


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "vjp"])
@pytest.mark.parametrize("batch", [1, 16, 128])
@pytest.mark.parametrize("width", [128, 256])
def test_mlp(benchmark, width: int, batch: int, gradient: bool, backend: str):
    torch.manual_seed(0)
    network = MCScoreNet(
        3, order=2, embedding=32, hidden_features=[width] * 5, activation=nn.SiLU
    ).requires_grad_(False)
    x, t, cotangent = torch.randn(batch, 65, 3), torch.tensor(0.5), torch.randn(batch, 65, 3)

    def run() -> torch.Tensor:
        if not gradient:
            with torch.no_grad():
                return network(x, t)
        y = x.detach().requires_grad_()
        return torch.autograd.grad(network(y, t), y, cotangent)[0]

    with sampling():
        with ops.backend("reference"):
            expected = run()
        with ops.backend(backend):
            torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-4)
            kind = "vjp" if gradient else "forward"
            threads = torch.get_num_threads()
            benchmark.group = f"mlp {kind}, width {width}, B = {batch} ({threads} threads)"
            benchmark(run)
