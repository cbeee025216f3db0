"""Within torch.inference_mode, and after it: nothing that is kept may be of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sda_fast import VPSDE, GaussianScore, MCScoreNet, sample
from sda_fast.guidance import Spectrum
from sda_fast.recognise import twin
from sda_fast.score import ScoreNet

SHAPES = {"mlp": (12, 3), "unet": (6, 2, 8, 8)}


def make(kind: str, **options: Any) -> MCScoreNet:
    torch.manual_seed(0)
    if kind == "mlp":
        network = MCScoreNet(3, order=2, hidden_features=[32, 32], **options)
    else:
        fields = {"spatial": 2, "hidden_channels": (8, 16), "hidden_blocks": (1, 1)}
        network = MCScoreNet(2, order=1, kernel_size=3, padding_mode="circular", **fields)
    return network.requires_grad_(False)


def gradient(network: MCScoreNet, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x, torch.tensor(0.5)).sum(), x)[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_after_it(kind: str):
    network, other = make(kind), make(kind)
    x = torch.randn(2, *SHAPES[kind])
    with torch.inference_mode():
        y = network(x, torch.tensor(0.5))
    assert torch.equal(gradient(network, x), gradient(other, x))
    assert torch.equal(network(x, torch.tensor(0.5)), y)


def test_a_twin_after_it():
    network = make("mlp")
    with torch.inference_mode():
        ours = twin(lookalike := Lookalike(network))
    assert twin(lookalike) is ours
    x = torch.randn(2, 12, 3)
    torch.testing.assert_close(gradient(ours, x), gradient(network, x))


class Lookalike(torch.nn.Module):
    """A network of another package, by its structure."""

    def __init__(self, network: MCScoreNet):
        super().__init__()
        self.order, self.kernel = network.order, network.kernel

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", SHAPES)
def test_guided_samples_within_it(kind: str, backend: str):
    shape, network = SHAPES[kind], make(kind)

    def draw() -> Tensor:
        prior = VPSDE(network, shape=shape)
        y = torch.zeros(len(range(0, shape[0], 3)), *shape[1:])
        posterior = VPSDE(GaussianScore(y, lambda x: x[:, ::3], 1.0, prior), shape=shape)
        options = {"steps": 3, "corrections": 1, "tau": 0.1, "seed": 1, "backend": backend}
        return sample(posterior, (2,), x1=torch.ones(2, *shape), **options)

    with torch.inference_mode():
        within = draw()
    assert torch.equal(within, draw())


def test_contexts_and_covariances_of_it():
    network = make("mlp", context=2)
    prior = VPSDE(network, shape=(12, 3))

    def draw(c: Tensor, y: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
        spectrum = Spectrum(vectors, values)
        guided = GaussianScore(y, lambda x: x[:, ::3], 1.0, prior, gamma=spectrum)
        return sample(VPSDE(guided, shape=(12, 3)), (2,), c=c, steps=3, seed=1)

    vectors, _ = torch.linalg.qr(torch.randn(36, 2))
    parts = torch.randn(2), torch.zeros(4, 3), vectors.reshape(12, 3, 2), torch.rand(2)
    with torch.inference_mode():
        of_it = [part.clone() for part in parts]
    assert torch.equal(draw(*of_it), draw(*parts))


def test_changed_weights_of_it_are_seen():
    with torch.inference_mode():
        network = make("mlp")
        x, t = torch.randn(2, 12, 3), torch.tensor(0.5)
        before = network(x, t)
        kernel = network.kernel
        assert isinstance(kernel, ScoreNet)
        kernel.network[0].weight.mul_(2)
        assert not torch.equal(network(x, t), before)
