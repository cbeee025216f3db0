"""Fused networks against the modules that they are made from, in float64.

They are float32 only, so that no gradcheck by differences can be made of them: what holds their
gradient is that the vector-Jacobian product is that of autograd through the module in float64.
"""

import copy
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import (
    VPSDE,
    Centre,
    GaussianScore,
    Junction,
    MCScoreNet,
    ScoreNet,
    explain,
    ops,
    sample,
)
from sda_fast._native import has_bfloat16
from sda_fast.fused import FusedMLP, Packed
from sda_fast.ops import networks
from sda_fast.packing import Fragments, Panels
from sda_fast.score import sampling

pytestmark = pytest.mark.skipif(
    ops.unserved(torch.empty(0)) is not None, reason="the native library is not built"
)


def make(features: int = 3, order: int = 2, **kwargs: Any) -> MCScoreNet:
    kwargs = {"embedding": 8, "hidden_features": [32] * 2, "activation": nn.SiLU} | kwargs
    torch.manual_seed(0)
    return MCScoreNet(features, order=order, **kwargs).requires_grad_(False)


def is_fused(network: MCScoreNet, x: Tensor, *args: Any) -> bool:
    return isinstance(network.fused(x, *args), FusedMLP)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def forward_and_vjp(network: MCScoreNet, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = network(x, *args)
    cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    return y.detach(), gradient


def check(network: MCScoreNet, x: Tensor, t: Tensor, c: Tensor | None = None) -> None:
    assert is_fused(network, x, t, c)
    exact = copy.deepcopy(network).double()
    context = None if c is None else c.double()

    y, gradient = forward_and_vjp(network, x, t, c)
    y_exact, gradient_exact = forward_and_vjp(exact, x.double(), t.double(), context)

    assert relative(y, y_exact) < 5e-6
    assert relative(gradient, gradient_exact) < 5e-6


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("length", [5, 6, 20, 21, 65])
def test_shapes(batch: int, length: int):
    check(make(), torch.randn(batch, length, 3), torch.tensor(0.3))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
def test_activations(activation: type[nn.Module]):
    check(make(activation=activation), 3 * torch.randn(2, 30, 3), torch.tensor(0.3))


@pytest.mark.parametrize(
    ("features", "order", "hidden"),
    [
        (1, 1, [16]),
        (2, 1, [7, 7, 9]),
        (3, 2, [64, 32, 15]),
        (3, 2, [256] * 5),
        (5, 4, [100]),
        (64, 1, [48]),
        (2, 16, [40, 80]),
        (3, 2, [512, 272, 496]),
        (64, 16, [512]),
        (3, 2, [32] * 20),
    ],
)
def test_widths(features: int, order: int, hidden: list[int]):
    network = make(features, order, hidden_features=hidden)
    check(network, torch.randn(3, 2 * order + 4, features), torch.tensor(0.7))


@pytest.mark.parametrize("length", [1, 4, 9, 10, 33, 64])
@pytest.mark.parametrize("rule", [Junction(9, 4), Junction(7, 1), Junction(9, 8)])
def test_junction(length: int, rule: Junction):
    network = make(order=4, length_aware=True, composition=rule)
    check(network, torch.randn(4, length, 3), torch.tensor(0.1))


def test_shorter_centre_windows():
    network = make(order=4, length_aware=True, composition=Centre(2))
    check(network, torch.randn(4, 20, 3), torch.tensor(0.1))


def test_context():
    network = make(context=6)
    check(network, torch.randn(3, 12, 3), torch.tensor(0.1), torch.randn(6))


def test_times_of_samples():
    check(make(), torch.randn(5, 30, 3), torch.rand(5, 1))


def test_empty_batch():
    network, t = make(), torch.tensor(0.5)
    assert is_fused(network, torch.empty(0, 9, 3))
    assert network(torch.empty(0, 9, 3), t).shape == (0, 9, 3)


def test_strided_input():
    network, t = make(), torch.tensor(0.5)
    x = torch.randn(20, 3, 4).transpose(0, 1)[..., 1:]
    torch.testing.assert_close(network(x, t), network(x.contiguous(), t), rtol=0, atol=0)


def test_samples_do_not_depend_on_each_other():
    network, t = make(hidden_features=[64] * 2), torch.tensor(0.5)
    x = torch.randn(40, 33, 3)
    y = network(x, t)

    for part in (slice(0, 1), slice(3, 10), slice(37, 40)):
        assert torch.equal(network(x[part], t), y[part])


def test_threads_do_not_matter():
    network, t = make(hidden_features=[64] * 2), torch.tensor(0.5)
    x, threads = torch.randn(7, 33, 3), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(forward_and_vjp(network, x, t))
    finally:
        torch.set_num_threads(threads)

    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("kept", [0, 1, 32, 96, 100, 200])
def test_what_is_kept_does_not_matter(
    kept: int, precision: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if precision == "medium":
        request.getfixturevalue("medium")
    network, x, t = make(), torch.randn(5, 33, 3), torch.tensor(0.5)
    expected = forward_and_vjp(network, x, t)

    bfloat16 = precision == "medium" and has_bfloat16()
    numbers = networks.kept_numbers([32, 32, 15], bfloat16)
    monkeypatch.setattr(networks, "KEPT_BYTES", 4 * kept * numbers)
    for result, other in zip(forward_and_vjp(network, x, t), expected, strict=True):
        assert torch.equal(result, other)


@pytest.mark.parametrize("observed_each", [False, True])
def test_guidance_in_parts(observed_each: bool, monkeypatch: pytest.MonkeyPatch):
    process = VPSDE(make(), shape=(20, 3))
    y = torch.randn(7, 5) if observed_each else torch.randn(5)
    guided = GaussianScore(y, lambda x: x[:, ::4, 0], 0.5, process)
    x, t = torch.randn(7, 20, 3), torch.tensor(0.5)

    expected = guided(x, t)
    assert process.eps.samples_at_once(x) > 7

    monkeypatch.setattr(networks, "KEPT_BYTES", 4 * 40 * networks.kept_numbers([32, 32, 15]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)
    assert process.eps.samples_at_once(x) == 2
    assert torch.equal(guided(x, t), expected)


def test_times_are_embedded_at_once(monkeypatch: pytest.MonkeyPatch):
    process = VPSDE(make(), shape=(20, 3))
    guided = GaussianScore(torch.randn(5), lambda x: x[:, ::4, 0], 0.5, process)
    monkeypatch.setattr(networks, "KEPT_BYTES", 4 * 40 * networks.kept_numbers([32, 32, 15]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)

    times: list[list[float]] = []
    embed = FusedMLP._bias

    def counted(self: FusedMLP, t: Tensor, c: Tensor | None) -> Tensor:
        times.append(t.tolist())
        return embed(self, t, c)

    monkeypatch.setattr(FusedMLP, "_bias", counted)
    sample(VPSDE(guided, shape=(20, 3)), (7,), steps=3, corrections=2, tau=0.1)

    # for all steps, parts of the samples and corrections
    (embedded,) = times
    assert embedded[:4] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_the_bias_of_another_time_or_context():
    network = make(context=2)
    x, t, c = torch.randn(2, 12, 3), torch.tensor(0.5), torch.randn(2)
    fused = network.fused(x, t, c)
    assert isinstance(fused, FusedMLP)

    with torch.no_grad():
        plan = network.plan(12)
        first = fused(x, t, c, plan)
        assert torch.equal(fused(x, t.clone(), c, plan), first)
        for time, context in ((t / 2, c), (t, c + 1), (t, c.add_(1))):
            expected = network(x, time, context)
            assert not torch.equal(expected, first)
            assert torch.equal(fused(x, time, context, plan), expected)


def test_transformations_in_time_use_the_module():
    network, x, t = make(), torch.randn(2, 12, 3), torch.tensor(0.5)
    times = torch.stack([t, t / 2])
    each = torch.stack([network(x, t), network(x, t / 2)])
    torch.testing.assert_close(torch.func.vmap(lambda t: network(x, t))(times), each)

    exact = copy.deepcopy(network).double()
    expected = torch.autograd.functional.jvp(
        lambda t: exact(x.double(), t), t.double(), torch.ones((), dtype=torch.float64)
    )[1]
    _, slope = torch.func.jvp(lambda t: network(x, t), (t,), (torch.ones(()),))
    torch.testing.assert_close(slope, expected.float(), rtol=1e-4, atol=1e-5)
    assert not is_fused(network, x, t.clone().requires_grad_())


def test_changed_weights_are_seen():
    network, x, t = make(), torch.randn(2, 20, 3), torch.tensor(0.5)
    before = network(x, t)

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(network(x, t), before)
    check(network, x, t)

    network.load_state_dict(make(activation=nn.ReLU).state_dict())
    torch.testing.assert_close(network(x, t), before)

    network.kernel.network[0] = nn.Linear(23, 32).requires_grad_(False)
    check(network, x, t)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_weights_changed_through_data_are_seen(kind: str):
    """Torch does not count such changes: averages of weights are put into a network so."""
    network, shape = make(), [20, 3]
    if kind == "unet":
        options = {"spatial": 2, "hidden_channels": (4, 8), "hidden_blocks": (1, 1)}
        network = MCScoreNet(2, order=1, kernel_size=3, **options).requires_grad_(False)
        shape = [5, 2, 8, 8]
    x, t = torch.randn(2, *shape), torch.tensor(0.5)

    def draw(backend: str = "auto") -> Tensor:
        process = VPSDE(network, shape=shape)
        return sample(process, (2,), steps=[0.6, 0.5], x1=x, seed=0, backend=backend)

    before = network(x, t), draw()
    layer = next(
        m for m in network.kernel.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)
    )
    layer.weight.data[..., -1:] *= -1
    with ops.backend("reference"):
        expected = network(x, t)
    assert relative(network(x, t), expected) < 1e-5 < relative(before[0], expected)
    expected = draw("reference")
    assert relative(draw(), expected) < 1e-5 < relative(before[1], expected)


def changed(network: MCScoreNet, change: str) -> str:
    """Changes a part of a network, and returns what is said of it."""
    block = network.kernel.network[1]
    if change == "layer":
        block[1] = nn.Sequential(block[1])
        return "its layer is of type Sequential, not Linear"
    if change == "more":
        block.append(nn.Identity())
        return "a block has 5 parts, not 4"
    if change == "activation":
        block[2] = nn.Tanh()
        return "its activation Tanh() is not native"
    if change == "activations":
        block[2] = nn.ReLU()
        return "its activations are not all the same"
    if change == "argument":
        block[2] = nn.ELU(alpha=0.5)
        return "its activation ELU(alpha=0.5) is not native"
    if change == "bias":
        block[1].bias = None
        return "a layer has no bias"
    if change == "hook":
        block[1].register_forward_hook(lambda module, inputs, output: 2 * output)
        return "its layer has hooks, or another forward"
    if change == "norm":
        block[0].eps = 1e-3
        return "its norm is over dimension -1 with eps 0.001"
    if change == "kernel":
        network.kernel = type("Other", (ScoreNet,), {})(15, embedding=8, hidden_features=[32])
        network.requires_grad_(False)
        return "its kernel is a Other"
    raise AssertionError(change)


@pytest.mark.parametrize(
    "change",
    [
        *("layer", "more", "activation", "activations", "argument", "bias", "hook", "norm"),
        "kernel",
    ],
)
def test_another_network_is_not_fused(change: str):
    network, x, t = make(), torch.randn(2, 20, 3), torch.tensor(0.5)
    assert is_fused(network, x, t)  # and what it was made of is remembered

    message = changed(network, change)
    assert network.fused(x, t) == message
    assert message in str(explain(VPSDE(network, shape=(20, 3))))

    with ops.backend("reference"):
        expected = network(x, t)
    torch.testing.assert_close(network(x, t), expected)


def test_parameters_keep_their_gradients():
    network, x, t = make().requires_grad_(True), torch.randn(2, 20, 3), torch.tensor(0.5)

    assert network.fused(x, t) == "its parameters require gradients"
    network(x, t).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

    with sampling():
        assert is_fused(network, x, t)
    with torch.no_grad():
        assert is_fused(network, x, t)


def test_the_bias_of_a_time_is_that_in_any_grid():
    network, x, times = make(context=2), torch.randn(2, 12, 3), torch.rand(130)
    c = torch.randn(2)

    def biases(times: Tensor) -> list[Tensor]:
        fused = FusedMLP(network, Packed())
        fused.prepare(times, c)
        return [fused._arguments(x, t, c, network.plan(12))[4] for t in times]

    whole = biases(times)
    for n in (1, 2, 31, 32, 33, 65):
        assert all(map(torch.equal, biases(times[:n]), whole))
        assert all(map(torch.equal, biases(times[-n:]), whole[-n:]))


def test_a_sample_makes_a_network_ready_once(monkeypatch: pytest.MonkeyPatch):
    """For its plan and all of its steps; and once more after a first look at what a callback may
    have changed."""
    calls: list[str] = []
    for name in ("__init__", "_bias"):
        method = getattr(FusedMLP, name)

        def counted(*args: Any, name: str = name, method: Any = method) -> Any:
            calls.append(name)
            return method(*args)

        monkeypatch.setattr(FusedMLP, name, counted)

    sde = VPSDE(make(), shape=(20, 3))
    for callback, times in ((None, 1), (lambda n, t, x: None, 2)):
        calls.clear()
        sample(sde, (2,), steps=5, corrections=1, callback=callback)
        assert calls == ["__init__", "_bias"] * times


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_called(dtype: torch.dtype):
    network, x = make().to(dtype), torch.randn(2, 20, 3, dtype=dtype)
    assert isinstance(network.fused(x), str)
    assert network(x, torch.tensor(0.5, dtype=dtype)).dtype == dtype


def operator_arguments(network: MCScoreNet, x: Tensor) -> tuple[Any, ...]:
    """The arguments of the operator for a network."""
    fused, plan = FusedMLP(network, Packed()), network.plan(x.shape[1])
    bias = torch.randn(1, -(-fused.widths[0] // 8) * 8)
    return (
        *(x, plan.start, plan.mask, plan.weight, bias, fused.weights, fused.transposed),
        *(fused.widths, fused.activation, fused.length_aware, False, False, 0),
    )


@pytest.fixture
def medium() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(precision)


class Rounded(nn.Linear):
    """A layer the factors of whose product are rounded to bfloat16, but for some columns.

    Of its gradient only the weights are: it is that at the place that was evaluated.
    """

    exact = slice(0)

    def forward(self, x: Tensor) -> Tensor:
        def rounded(t: Tensor) -> Tensor:
            near = t.detach().bfloat16().to(t.dtype)
            near[..., self.exact] = t.detach()[..., self.exact]
            return t + (near - t).detach()

        return nn.functional.linear(rounded(x), rounded(self.weight), self.bias)


def with_rounded_factors(network: MCScoreNet) -> MCScoreNet:
    """A copy in float64 that evaluates where the products in bfloat16 do, to their sums."""
    fused = FusedMLP(network, Packed())
    twin = copy.deepcopy(network).double()
    for linear in twin.kernel.network.modules():
        if isinstance(linear, nn.Linear):
            linear.__class__ = Rounded
    twin.kernel.network[0].exact = slice(*fused.columns)
    return twin


LEAPING = (nn.ReLU, nn.SELU)  # their derivatives do, at 0


@pytest.mark.skipif(not has_bfloat16(), reason="no GPU nor CPU with bfloat16 products here")
@pytest.mark.parametrize("kind", ["plain", "junction", "context", "times"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
@pytest.mark.parametrize(("features", "hidden"), [(2, [256] * 5), (3, [33, 64])])
def test_bfloat16_products(
    medium: None, features: int, hidden: list[int], activation: type[nn.Module], kind: str
):
    """As near as the rounding of factors lets them be: where that takes an input to the other side
    of a leap of the derivative, the gradient is the module's at the place that was evaluated."""
    options: dict[str, dict[str, Any]] = {
        "junction": {"length_aware": True, "composition": Junction(5, 2)},
        "context": {"context": 6},
    }
    options = options.get(kind, {})
    network = make(features, hidden_features=hidden, activation=activation, **options)
    x = torch.randn(4, 40, features)
    t = torch.rand(4, 1) if kind == "times" else torch.tensor(0.3)
    c = torch.randn(6) if kind == "context" else None
    assert network.fused(x, t, c).bfloat16  # type: ignore[union-attr]

    wide = (x.double(), t.double(), None if c is None else c.double())
    result, gradient = forward_and_vjp(network, x, t, c)
    exact = forward_and_vjp(copy.deepcopy(network).double(), *wide)
    rounded = forward_and_vjp(with_rounded_factors(network), *wide)
    assert 1e-5 < relative(result, exact[0]) < 2e-2
    assert relative(result, rounded[0]) < 2e-3
    assert 1e-5 < relative(gradient, (rounded if activation in LEAPING else exact)[1]) < 2e-2


def test_float32_is_the_default():
    network, x = make(), torch.randn(2, 9, 3)
    assert not network.fused(x).bfloat16  # type: ignore[union-attr]


def test_operator_is_registered_well():
    arguments = operator_arguments(make(), torch.randn(2, 9, 3, requires_grad=True))
    torch.library.opcheck(torch.ops.sda_fast.mlp_score.default, arguments)
    kept = torch.ops.sda_fast.mlp_score(*arguments)[1]
    (x, *others), options = arguments[:7], arguments[7:-1]
    constants = (torch.randn(2, 9, 3), x.detach(), *others, kept, *options)
    torch.library.opcheck(torch.ops.sda_fast.mlp_score_vjp.default, constants)


@pytest.mark.parametrize(
    ("widths", "inputs", "bfloat16", "shared", "reason"),
    [
        ([256] * 5 + [15], 15, False, 99 << 10, None),
        ([2112], 2145, False, 227 << 10, None),
        ([2112], 2145, False, 99 << 10, "a tile of 8 windows takes 138112 bytes of shared memory"),
        ([2112], 2145, True, 163 << 10, None),
        ([2200], 24, True, 227 << 10, "at most 2176 features wide, not 2200"),
        ([8] * 513, 8, False, 227 << 10, "at most 512 residual blocks, not 513"),
    ],
)
def test_what_does_not_fit_on_cuda(
    widths: list[int], inputs: int, bfloat16: bool, shared: int, reason: str | None
):
    found = ops.too_large(widths, inputs, bfloat16, shared)
    assert found is None if reason is None else reason in str(found)


def test_weights_are_packed_anew_for_another_precision():
    network, packed = make(), Packed()
    for packing in (Fragments(), Fragments(tf32=True), Fragments(bfloat16=True), Panels()):
        fused = FusedMLP(network, packed, packing)
        fresh = FusedMLP(network, Packed(), packing)
        assert torch.equal(fused.weights, fresh.weights)
        assert torch.equal(fused.transposed, fresh.transposed)
        assert (fused.bfloat16, fused.tf32) == (packing.bfloat16, packing.tf32)


def test_weights_that_another_thread_packs_meanwhile():
    """For another precision, while it is found out whether there are any for this one."""
    network, packed = make(), Packed()
    meanwhile = [Fragments(bfloat16=True)]

    class Interrupted(Panels):
        def __eq__(self, other: object) -> bool:
            while meanwhile:
                FusedMLP(network, packed, meanwhile.pop())
            return isinstance(other, Interrupted)

        __hash__ = Panels.__hash__

    FusedMLP(network, packed, Interrupted())
    fused = FusedMLP(network, packed, Interrupted())
    assert torch.equal(fused.weights, FusedMLP(network, Packed(), Panels()).weights)


def test_second_derivative_is_refused():
    network, x = make(), torch.randn(2, 9, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        network(x, torch.tensor(0.5)).square().sum(), x, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(9, 3), "x must be"),
        (0, torch.randn(2, 9, 3).double(), "x must be"),
        (0, torch.randn(2, 8, 3), "must lie in the trajectory"),
        (4, torch.randn(3, 32), "bias must have shape"),
        (5, torch.randn(7), "weights must have"),
        (7, [32, 16], "widths must"),
        (8, 9, "activation must be"),
    ],
)
def test_operator_refuses(place: int, value: Any, message: str):
    arguments = list(operator_arguments(make(), torch.randn(2, 9, 3)))
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sda_fast.mlp_score(*arguments)


def test_packed_weights_stay_behind():
    """A network that was evaluated is not larger on disk, and its copies pack their own."""

    def size(network: Any) -> int:
        file = io.BytesIO()
        torch.save(network, file)
        return len(file.getvalue())

    network, x, t = make(), torch.randn(2, 9, 3), torch.tensor(0.5)
    before = size(network)
    expected = network(x, t)
    assert size(network) == before
    twin = copy.deepcopy(network)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(twin(x, t), expected)
    assert torch.equal(network(x, t), expected)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa: str):
    chosen = "shapes or activations or widths or junction or bfloat16"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env={**os.environ, "SDA_FAST_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "which this CPU does not have" in done.stdout:
        pytest.skip(f"this CPU, or GPU-less machine, has no {isa}")
    assert done.returncode == 0, done.stdout
