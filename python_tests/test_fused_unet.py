"""Fused U-Nets against the modules that they are made from, in float64."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sda_fast import (
    VPSDE,
    GaussianScore,
    MCScoreNet,
    MCScoreWrapper,
    ScoreUNet,
    explain,
    ops,
    sample,
)
from sda_fast._native import has_bfloat16
from sda_fast.fused_unet import FusedUNet, convolution
from sda_fast.fused_unet.convolution import Convolution, OneDNN, Winograd
from sda_fast.kernels import ForcedScoreUNet, VelocityKernel, kolmogorov_forcing
from sda_fast.nn import UNet
from sda_fast.sampler.graph import capture
from sda_fast.score import sampling

pytestmark = pytest.mark.skipif(
    ops.unserved(torch.empty(0)) is not None, reason="the native library is not built"
)

T = torch.tensor(0.3)


def make(channels: int = 6, context: int = 0, **kwargs: Any) -> ScoreUNet:
    options: dict[str, Any] = {
        "embedding": 16,
        "hidden_channels": (16, 24),
        "hidden_blocks": (2, 1),
        "activation": nn.SiLU,
        "padding_mode": "circular",
    }
    torch.manual_seed(0)
    return ScoreUNet(channels, context, **(options | kwargs)).requires_grad_(False)


def composed(kernel: nn.Module | None = None, **kwargs: Any) -> MCScoreNet:
    """A network of windows of 3 states of 2 channels."""
    torch.manual_seed(0)
    options = {"hidden_channels": (16,), "hidden_blocks": (1,)} | kwargs
    network = MCScoreNet(2, order=1, spatial=2, embedding=16, **options)
    network.kernel = make() if kernel is None else kernel
    return network.requires_grad_(False)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def forward_and_vjp(network: nn.Module, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = network(x, *args)
    cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape).sin()
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    return y.detach(), gradient


def check(network: ScoreUNet, x: Tensor, t: Tensor, c: Tensor | None = None) -> None:
    d = 1 + network.network.spatial
    y = x if c is None else torch.cat((x, c.expand(*x.shape[:-d], *c.shape[-d:])), dim=-d)
    fused = network.fused(y.reshape(-1, *y.shape[-d:]), t)
    assert isinstance(fused, FusedUNet), fused
    exact = copy.deepcopy(network).double()
    context = None if c is None else c.double()

    expected, gradient = forward_and_vjp(exact, x.double(), t.double(), context)
    for result, other in zip(forward_and_vjp(network, x, t, c), (expected, gradient), strict=True):
        assert relative(result, other) < 5e-6
    with torch.no_grad():
        assert relative(network(x, t, c), expected) < 5e-6


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (6, 10), (14, 4)])
def test_shapes(batch: int, grid: tuple[int, int], mode: str):
    check(make(padding_mode=mode), torch.randn(batch, 6, *grid), T)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("grid", "kwargs"),
    [
        ((8, 12), {"kernel_size": 5}),
        ((8, 12), {"kernel_size": (3, 1), "stride": (2, 1)}),
        ((9, 18), {"stride": 3}),
        ((8, 8), {"kernel_size": 1}),
        ((7, 5), {"hidden_channels": (20,), "hidden_blocks": (2,)}),
        ((16, 8), {"hidden_channels": (8, 16, 40, 33), "hidden_blocks": (1, 2, 1, 1)}),
        ((8, 8), {"hidden_blocks": (0, 1)}),
        ((8, 8), {"hidden_blocks": (1, 0)}),
        ((8, 8), {"bias": False}),
    ],
    ids=str,
)
def test_structures(grid: tuple[int, int], kwargs: dict[str, Any], mode: str):
    check(make(padding_mode=mode, **kwargs), torch.randn(2, 6, *grid), T)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
def test_activations(activation: type[nn.Module]):
    check(make(activation=activation), 3 * torch.randn(2, 6, 8, 8), T)


def test_context_times_and_leading_dimensions():
    network = make(4, 2)
    check(network, torch.randn(2, 3, 4, 8, 8), T, torch.randn(2, 8, 8))
    check(network, torch.randn(5, 4, 8, 8), torch.rand(5), torch.randn(2, 8, 8))


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("size", "kwargs"),
    [
        (8, {}),
        (7, {"hidden_channels": (20,), "hidden_blocks": (3,)}),
        (18, {"kernel_size": 5, "stride": 3}),
        (16, {"hidden_channels": (8, 16, 40), "hidden_blocks": (1, 0, 2), "bias": False}),
        (12, {"hidden_channels": (8, 16), "stride": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("own", [True, False], ids=["oneDNN", "torch's own"])
def test_lines(
    size: int, kwargs: dict[str, Any], mode: str, own: bool, request: pytest.FixtureRequest
):
    """Fields of one dimension, such as time, are planes of one row."""
    if not own:
        request.getfixturevalue("plain")
    network = make(4, 2, padding_mode=mode, spatial=1, **kwargs)
    check(network, torch.randn(3, 4, size), T, torch.randn(2, size))
    check(network, torch.randn(3, 4, size), torch.rand(3), torch.randn(2, size))


@pytest.mark.parametrize("guided", [False, True])
def test_trajectories_as_lines(guided: bool):
    """The time of a trajectory is the dimension."""
    network = MCScoreWrapper(make(3, spatial=1))
    sde = VPSDE(network, (12, 3))
    if guided:
        sde = VPSDE(GaussianScore(torch.zeros(3), lambda x: x[:, ::4, 0], 0.5, sde), sde.shape)
    assert "its U-Net fused, in float32" in str(explain(sde))
    native, expected = (
        sample(sde, (3,), steps=4, corrections=1, tau=0.1, clip=3.0, seed=1, backend=name)
        for name in ("native", "reference")
    )
    torch.testing.assert_close(native, expected, rtol=1e-4, atol=1e-4)
    short = VPSDE(network, (9, 3))
    assert "a grid of (9,) cells does not divide by (2,)" in str(explain(short))


def test_strided_fields():
    network, x = make(), torch.randn(8, 3, 6, 8).permute(1, 2, 3, 0)
    check(network, x, T)
    assert torch.equal(network(x, T), network(x.contiguous(), T))


def test_empty_batch():
    network = make()
    assert isinstance(network.fused(torch.empty(0, 6, 8, 8)), FusedUNet)
    assert network(torch.empty(0, 6, 8, 8), T).shape == (0, 6, 8, 8)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as torch has them everywhere, on CUDA too."""
    monkeypatch.setattr(convolution, "without_onednn", lambda: "it is told not to")


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("grid", "kwargs"),
    [
        ((8, 8), {}),
        ((9, 18), {"stride": 3}),
        ((6, 10), {"kernel_size": 5}),
        ((8, 8), {"hidden_channels": (8, 16, 40), "hidden_blocks": (1, 0, 2)}),
        ((7, 5), {"hidden_channels": (20,), "hidden_blocks": (2,)}),
        ((8, 12), {"kernel_size": (3, 1), "stride": (2, 1), "bias": False}),
    ],
    ids=str,
)
def test_torchs_own_convolutions(
    plain: None, grid: tuple[int, int], kwargs: dict[str, Any], mode: str
):
    network, x = make(padding_mode=mode, **kwargs), torch.randn(3, 6, *grid)
    fused = network.fused(x, T)
    assert isinstance(fused, FusedUNet)
    assert {type(c) for c in fused.weights.heads} == {Convolution}
    check(network, x, T)


LOST = {
    "packing": (torch._C._nn, "mkldnn_reorder_conv2d_weight", None),
    "operator": (torch.ops.mkldnn, "_convolution_pointwise_", None),
    "schema": (torch.ops.mkldnn, "_convolution_pointwise", None),
    "meaning": (OneDNN, "__call__", lambda self, x, onto=None: torch.zeros(1, 1, 1, 1)),
}


@pytest.mark.parametrize("lost", LOST)
def test_torch_without_the_operators(lost: str, monkeypatch: pytest.MonkeyPatch):
    """They are torch's private ones: one that lacks them is served all the same, and told."""
    network, x = make(), torch.randn(2, 6, 8, 8)
    fused = network.fused(x, T)
    assert isinstance(fused, FusedUNet)
    assert {type(c) for c in fused.weights.heads} == {Winograd}

    owner, name, other = LOST[lost]
    monkeypatch.setattr(owner, name, other)
    convolution.missing.cache_clear()
    try:
        check(network, x, T)
        told = str(explain(VPSDE(composed(network), shape=(5, 2, 8, 8))))
        assert "its U-Net fused, in float32, with torch's own convolutions: this torch" in told
    finally:
        convolution.missing.cache_clear()


class Filtered(TorchDispatchMode):
    """Counts the convolutions by minimal filtering."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name.startswith("sda_fast::winograd")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("kwargs", "grid", "count"),
    [
        ({}, (16, 16), 13),  # all but the first, the last and the one with a stride
        ({"hidden_channels": (16, 24)}, (16, 16), 8),
        ({}, (12, 10), 13),
        ({}, (2, 2), 9),  # the lower level is less than a quarter of a tile
        ({"kernel_size": 5}, (16, 16), 0),
        ({"kernel_size": (1, 3)}, (16, 16), 13),
        ({"kernel_size": (3, 1)}, (16, 16), 0),
        ({"spatial": 1}, (16,), 13),
    ],
    ids=str,
)
def test_which_convolutions_are_filtered(
    kwargs: dict[str, Any], grid: tuple[int, ...], count: int, mode: str
):
    network = make(padding_mode=mode, **({"hidden_channels": (16, 32)} | kwargs))
    x = torch.randn(2, 6, *grid)
    check(network, x, T)
    with Filtered() as forward, torch.no_grad():
        network(x, T)
    with Filtered() as both:
        forward_and_vjp(network, x, T)
    assert (forward.count, both.count) == (count, 2 * count)


def test_which_fields_are_filtered():
    def pays(
        outputs: int, inputs: int, *shape: int, padding: tuple[int, int] = (0, 0), rows: int = 3
    ) -> bool:
        layer = Winograd(torch.zeros(outputs, inputs, rows, 3), None, (1, 1), padding)
        return layer.possible and layer.pays(torch.empty(shape[0], inputs, *shape[1:]))

    assert pays(32, 16, 1, 6, 6)
    assert pays(16, 16, 2, 4, 4)
    assert not pays(16, 16, 2, 3, 4)
    assert pays(16, 16, 2, 2, 2, padding=(1, 1))
    assert not pays(24, 16, 1, 6, 6)
    assert not pays(16, 6, 1, 6, 6)
    assert not pays(384, 384, 1, 6, 6)
    assert pays(384, 384, 8, 6, 6)
    assert pays(16, 16, 3, 1, 4, rows=1)
    assert not pays(16, 16, 3, 1, 3, rows=1)
    assert not pays(384, 384, 1, 1, 30, rows=1)
    assert pays(384, 384, 1, 1, 31, rows=1)


@pytest.mark.parametrize("spatial", [1, 2])
def test_memory_of_packed_weights(spatial: int):
    """It is told before there is any, for the network alone and with its gradient."""
    network = make(16, hidden_channels=(32,), hidden_blocks=(2,), spatial=spatial)
    x = torch.randn(2, 16, *(12,) * spatial)
    fused = network.fused(x)
    assert isinstance(fused, FusedUNet)
    told = [fused.packed_bytes(gradient) for gradient in (False, True)]

    def taken() -> int:
        weights = fused.weights
        layers = [c for level in (*weights.descent, *weights.ascent) for b in level for c in b[:2]]
        layers += [*weights.heads, *weights.tails]
        layers += [layer._adjoint for layer in layers if layer._adjoint is not None]
        packed = sum(layer.weight.nbytes + layer._kernel.nbytes for layer in layers)
        return packed + weights.projection.nbytes

    with torch.no_grad():
        network(x, T)
    assert taken() == told[0]
    forward_and_vjp(network, x, T)
    assert taken() == told[1]


@pytest.mark.parametrize("guided", [False, True])
def test_a_plan_counts_packed_weights(guided: bool):
    network = composed()
    sde = VPSDE(network, shape=(5, 2, 8, 8))
    if guided:
        sde = VPSDE(
            GaussianScore(torch.zeros(3), lambda x: x[:, ::2, 0, 0, 0], 1.0, sde), sde.shape
        )
    fused = network.kernel.fused(torch.empty(0, 6, 8, 8))
    with_them, without = (
        explain(sde, (2,), backend=backend).network_bytes for backend in ("auto", "reference")
    )
    assert isinstance(fused, FusedUNet)
    assert with_them - without == fused.packed_bytes(guided)


def test_linearise_many_times():
    network, x, y = make(), torch.randn(2, 6, 8, 8), torch.randn(1, 16)
    fused = network.fused(x)
    assert isinstance(fused, FusedUNet)
    result, vjp = fused.linearise(x, y)
    assert torch.equal(result, fused(x, y))

    leaf = x.clone().requires_grad_()
    expected = network.network(leaf, y)
    for _ in range(2):
        g = torch.randn_like(result)
        (gradient,) = torch.autograd.grad(expected, leaf, g, retain_graph=True)
        torch.testing.assert_close(vjp(g), gradient, rtol=1e-4, atol=1e-5)


def test_second_derivative_is_refused():
    network, x = make(), torch.randn(1, 6, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x, T).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("convolve", [Convolution, OneDNN, Winograd])
def test_convolution_and_its_adjoint(convolve: type[Convolution]):
    """<g, W x> = <W^T g, x>, for any stride and padding."""
    x, size = torch.randn(2, 3, 9, 12), [9, 12]
    for stride, kernel in (((1, 1), (3, 5)), ((2, 3), (3, 3)), ((3, 2), (1, 3))):
        pad = (kernel[0] // 2, kernel[1] // 2)
        for circular in (True, False):
            around, zeros = (pad, (0, 0)) if circular else ((0, 0), pad)
            layer = convolve(torch.randn(4, 3, *kernel), None, stride, zeros)
            y = layer(ops.activation_pad(x, None, around))
            g = torch.randn_like(y)
            products = [layer.strided_adjoint(g, size, around)]
            if stride == (1, 1):
                products.append(layer.adjoint(ops.activation_pad(g, None, around)))
            for product in products:
                torch.testing.assert_close((product * x).sum(), (g * y).sum(), rtol=1e-4, atol=1e-3)


# Weights


def test_changed_weights_are_seen():
    network, x = make(), torch.randn(2, 6, 8, 8)
    before = network(x, T)

    for parameter in network.network.parameters():
        with torch.no_grad():
            parameter.mul_(1.1)
        after = network(x, T)
        assert not torch.equal(after, before)
        before = after
    check(network, x, T)

    other = make(hidden_blocks=(2, 1))
    network.load_state_dict(other.state_dict())
    assert torch.equal(network(x, T), other(x, T))

    network.network.heads[0] = nn.Conv2d(6, 16, 3, padding=1, padding_mode="circular")
    check(network.requires_grad_(False), x, T)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gradient_is_that_of_the_weights_evaluated(kernel_size: int):
    network, x = make(kernel_size=kernel_size), torch.randn(2, 6, 8, 8)
    _, expected = forward_and_vjp(copy.deepcopy(network), x, T)

    def halve(gradient: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.5)
        return gradient

    x.requires_grad_()
    y = network(x, T)
    y.register_hook(halve)
    cotangent = torch.linspace(-1, 2, y.numel()).reshape(y.shape).sin()
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    assert torch.equal(gradient, expected)


def test_copies_have_weights_of_their_own():
    network, x = make(), torch.randn(2, 6, 8, 8)
    before = network(x, T)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.network.tails[-1].weight.zero_()
    assert not torch.equal(other(x, T), before)
    assert torch.equal(network(x, T), before)


def test_parameters_keep_their_gradients():
    network, x = make().requires_grad_(True), torch.randn(2, 6, 8, 8)

    assert network.fused(x, T) == "its parameters require gradients"
    network(x, T).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

    for context in (sampling(), torch.no_grad()):
        with context:
            assert isinstance(network.fused(x, T), FusedUNet)
    with sampling():
        check(network, x, T)


# What is not fused


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def changed(network: UNet, change: str) -> str:
    """Changes a part of a U-Net, and returns what is said of it."""
    block = network.ascent[0][0]
    residue = block.residue
    if change == "layer":
        residue[1] = nn.Sequential(residue[1])
        return "Sequential, not Conv2d"
    if change == "more":
        residue.append(nn.Identity())
        return "has 5 parts"
    if change == "activation":
        residue[2] = nn.Tanh()
        return "Tanh"
    if change == "activations":
        residue[2] = nn.ReLU()
        return "not all the same"
    if change == "hook":
        residue[3].register_forward_hook(lambda module, inputs, output: 2 * output)
        return "hooks"
    if change == "norm":
        residue[0] = Norm()
        return "Norm, not LayerNorm"
    if change == "dimension":
        residue[0].dim = -1
        return "over dimension -1"
    if change == "padding":
        residue[1].padding_mode = "reflect"
        return "of mode reflect"
    if change == "mixed":
        residue[1] = nn.Conv2d(24, 24, 3, padding=1)
        return "not all of one"
    if change == "dilation":
        residue[1] = nn.Conv2d(24, 24, 3, padding=1, dilation=2, padding_mode="circular")
        return "dilation"
    if change == "project":
        block.project = nn.Sequential(block.project[0], nn.Flatten(), block.project[1])
        return "has 3 parts"
    if change == "upsample":
        network.tails[0][1] = nn.Upsample(scale_factor=2, mode="bilinear")
        return "to the nearest"
    if change == "subclass":
        network.__class__ = type("Other", (UNet,), {})
        return "Other, not UNet"
    raise AssertionError(change)


@pytest.mark.parametrize(
    "change",
    [
        *("layer", "more", "activation", "activations", "hook", "norm", "dimension", "padding"),
        *("mixed", "dilation", "project", "upsample", "subclass"),
    ],
)
def test_another_network_is_not_fused(change: str):
    network, x = make(), torch.randn(2, 6, 8, 8)
    assert isinstance(network.fused(x, T), FusedUNet)  # and its weights are remembered

    message = changed(network.network, change)
    network.requires_grad_(False)
    reason = network.fused(x, T)
    assert isinstance(reason, str)
    assert message in reason
    if change != "dilation":
        with ops.backend("reference"):
            expected = network(x, T)
        torch.testing.assert_close(network(x, T), expected)

    process = VPSDE(composed(network), shape=(5, 2, 8, 8))
    assert message in str(explain(process))


def test_volumes_are_called():
    network, x = make(spatial=3), torch.randn(2, 6, 4, 4, 4)
    assert network.fused(x, T) == "its fields have 3 spatial dimensions, not 1 or 2"
    assert network(x, T).shape == x.shape


def test_other_arguments_are_called():
    network, x = make(), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.fused(x, T) == "autocast is on"
    time = T.clone().requires_grad_()
    assert "gradient of time" in str(network.fused(x, time))
    (gradient,) = torch.autograd.grad(network(x, time).sum(), time)
    assert float(gradient) != 0
    assert "does not divide" in str(network.fused(x[..., :7], T))
    wide = make(kernel_size=7)
    assert "narrower than the padding" in str(wide.fused(x[..., :4, :4], T))
    network.double()
    assert isinstance(network.fused(x.double()), str)
    assert network(x.double(), T.double()).dtype == torch.float64


def test_transformations_use_the_module():
    network, x = make(), torch.randn(2, 6, 8, 8)
    expected = network(x, T)
    torch.testing.assert_close(torch.func.vmap(lambda x: network(x, T))(x[None])[0], expected)
    _, tangent = torch.func.jvp(lambda x: network(x, T), (x,), (x,))
    assert tangent.shape == x.shape

    each = torch.stack([network(x, T), network(x, T / 2)])
    times = torch.stack([T, T / 2])
    torch.testing.assert_close(torch.func.vmap(lambda t: network(x, t))(times), each)
    _, slope = torch.func.jvp(lambda t: network(x, t), (T,), (torch.ones(()),))
    exact = copy.deepcopy(network).double()
    expected = torch.autograd.functional.jvp(
        lambda t: exact(x.double(), t), T.double(), torch.ones((), dtype=torch.float64)
    )[1]
    torch.testing.assert_close(slope, expected.float(), rtol=1e-3, atol=1e-4)


# Within a sampler


def wrapped(kind: str) -> nn.Module:
    size = 8
    if kind == "plain":
        return make()
    forced = ForcedScoreUNet(
        6,
        forcing=kolmogorov_forcing(size),
        embedding=16,
        hidden_channels=(16, 24),
        hidden_blocks=(1, 1),
        activation=nn.SiLU,
        padding_mode="circular",
    )
    return forced if kind == "forced" else VelocityKernel(forced)


@pytest.mark.parametrize("window_batch", [None, 2])
@pytest.mark.parametrize("kind", ["plain", "forced", "velocity"])
def test_composed(kind: str, window_batch: int | None):
    network, x = composed(wrapped(kind)), torch.randn(3, 6, 2, 8, 8)
    exact = copy.deepcopy(network).double()
    expected, gradient = forward_and_vjp(exact, x.double(), T.double())

    with sampling(window_batch):
        for result, other in zip(forward_and_vjp(network, x, T), (expected, gradient), strict=True):
            assert relative(result, other) < 5e-6

        result, vjp = network.linearise(x, T)
        assert relative(result, expected) < 5e-6
        g = torch.linspace(-1, 2, result.numel()).reshape(result.shape).sin()
        assert relative(vjp(g), gradient) < 5e-6


@pytest.mark.parametrize("kind", ["plain", "forced", "velocity"])
def test_plan_says_that_it_is_fused(kind: str):
    process = VPSDE(composed(wrapped(kind)), shape=(6, 2, 8, 8))
    guided = GaussianScore(torch.zeros(2), lambda x: x[:, ::3, 0, 0, 0], 0.5, process)
    for eps in (process.eps, guided):
        (part,) = [p for p in explain(VPSDE(eps, shape=(6, 2, 8, 8))).parts if p[0] == "network"]
        assert part[1] == "native"
        assert "its U-Net fused, in float32" in part[2]
    assert "not used" in str(explain(process, backend="reference"))


def test_plan_of_a_network_of_whole_trajectories():
    process = VPSDE(MCScoreWrapper(make(2)), shape=(6, 2, 8, 8))
    assert "its U-Net fused" in str(explain(VPSDE(make(2), shape=(2, 8, 8))))
    assert "MCScoreWrapper" in str(explain(process))


def test_samples_are_those_of_the_module():
    process = VPSDE(composed(), shape=(5, 2, 8, 8))
    x1 = torch.randn(2, 5, 2, 8, 8)
    guided = VPSDE(
        GaussianScore(torch.zeros(2), lambda x: x[:, ::3, 0, 0, 0], 0.5, process), (5, 2, 8, 8)
    )
    for sde in (process, guided):
        fast, plain = (sde.sample((2,), steps=3, x1=x1, backend=b) for b in ("auto", "reference"))
        assert relative(fast, plain.double()) < 1e-3


# Precision


@pytest.fixture
def medium() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no products in bfloat16")
@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
def test_bfloat16(medium: None, activation: type[nn.Module], mode: str):
    network = make(
        hidden_channels=(32, 64, 96),
        hidden_blocks=(2, 2, 2),
        activation=activation,
        padding_mode=mode,
    )
    x = torch.randn(3, 6, 16, 16)
    fused = network.fused(x)
    assert isinstance(fused, FusedUNet)
    assert fused.dtype == torch.bfloat16
    exact = forward_and_vjp(copy.deepcopy(network).double(), x.double(), T.double())
    for result, other in zip(forward_and_vjp(network, x, T), exact, strict=True):
        assert result.dtype == torch.float32
        assert 1e-5 < relative(result, other) < 2e-2

    assert "in bfloat16" in str(explain(VPSDE(composed(network), shape=(5, 2, 16, 16))))


class Masked(nn.Module):
    """ReLU, but for which of its inputs are positive."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        self.others = float(((x > 0) != self.mask).double().mean())
        return x * self.mask


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no products in bfloat16")
def test_bfloat16_at_kinks(medium: None):
    """The derivative of ReLU jumps: where rounding takes an input to the other side of zero, the
    module's is another. But for those few inputs the gradient is as good as of smooth ones."""
    network, x = make(hidden_channels=(32, 64), activation=nn.ReLU), torch.randn(2, 6, 16, 16)
    fused = network.fused(x)
    assert isinstance(fused, FusedUNet)
    kept: list[Any] = []
    result = fused._evaluate(x, network.embedding(T.reshape(-1)), kept)
    cotangent = torch.randn_like(result)
    gradient = fused._vjp(cotangent, kept)

    exact = copy.deepcopy(network).double()
    masks = [k.before > 0 for k in kept if k.before is not None]
    levels = (*exact.network.descent, *exact.network.ascent)
    blocks = [block for level in levels for block in level]
    for block, mask in zip(blocks, masks, strict=True):
        block.residue[2] = Masked(mask)
    leaf = x.double().requires_grad_()
    expected = exact(leaf, T.double())
    (other,) = torch.autograd.grad(expected, leaf, cotangent.double())
    assert relative(result, expected.detach()) < 2e-2
    assert relative(gradient, other) < 2e-2
    assert all(block.residue[2].others < 1e-2 for block in blocks)


def test_float32_is_the_default():
    fused = make().fused(torch.randn(2, 6, 8, 8))
    assert isinstance(fused, FusedUNet)
    assert fused.dtype == torch.float32


def test_threads_and_batches_matter_to_rounding():
    """Not at all on the way forward; on the way back the library's convolutions with a stride add
    up in an order that may depend on the threads."""
    network, x, threads = make(), torch.randn(5, 6, 16, 16), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(forward_and_vjp(network, x, T))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        torch.testing.assert_close(results[0][1], other[1], rtol=1e-5, atol=1e-5)
    for part in (slice(0, 1), slice(2, 5)):
        torch.testing.assert_close(network(x[part], T), results[0][0][part], rtol=1e-5, atol=1e-6)


# On a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("precision", "kind", "most"),
    [("highest", "float32", 1e-5), ("high", "TF32", 5e-3), ("medium", "bfloat16", 2e-2)],
)
def test_on_a_gpu(precision: str, kind: str, most: float, mode: str):
    """Captured in a graph too, the numbers are those of the module in float64."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        network = make(hidden_channels=(32, 64), padding_mode=mode)
        x, cotangent = torch.randn(2, 3, 6, 16, 24)
        exact = copy.deepcopy(network).double()
        leaf = x.double().requires_grad_()
        expected = exact(leaf, T.double())
        (gradient,) = torch.autograd.grad(expected, leaf, cotangent.double())

        network, x, cotangent, t = (a.cuda() for a in (network, x, cotangent, T))
        fused = network.fused(x, t)
        assert isinstance(fused, FusedUNet), fused
        assert str(fused) == f"its U-Net fused, in {kind}"

        def evaluate() -> tuple[Tensor, Tensor]:
            result, vjp = fused.linearise(x, network.embedding(t.reshape(-1)))
            return result, vjp(cotangent)

        captured, replay = capture(evaluate)
        replay()
        for results in (evaluate(), captured):
            for result, other in zip(results, (expected.detach(), gradient), strict=True):
                assert relative(result.cpu(), other) < most
    finally:
        torch.set_float32_matmul_precision(before)
