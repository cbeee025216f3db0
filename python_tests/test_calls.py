"""What a call of a module runs beside its class's own code is run, or the module is called."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, explain, ops, sample
from sda_fast._calls import stands_for_call
from sda_fast.observation import Stack, Subsample

pytestmark = pytest.mark.skipif(
    ops.unserved(torch.empty(0)) is not None, reason="the native library is not built"
)

T = torch.tensor(0.3)


def mlp() -> MCScoreNet:
    torch.manual_seed(0)
    network = MCScoreNet(3, order=2, hidden_features=[32, 32], activation=nn.SiLU)
    return network.requires_grad_(False)


def unet() -> MCScoreNet:
    torch.manual_seed(0)
    options = {"hidden_channels": (8,), "hidden_blocks": (1,), "embedding": 8}
    return MCScoreNet(3, order=2, spatial=2, **options).requires_grad_(False)


NETWORKS: dict[str, tuple[Callable[[], MCScoreNet], tuple[int, ...]]] = {
    "mlp": (mlp, (9, 3)),
    "unet": (unet, (5, 3, 4, 4)),
}
PARTS = [
    (kind, name)
    for kind, (make, _) in NETWORKS.items()
    for name, part in make().named_modules()
    if type(part) is not nn.ModuleList  # which is not called
]


def double(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: 2 * f(*args)


def guided(network: nn.Module, event: tuple[int, ...]) -> VPSDE:
    A = Subsample(event, slice(None, None, 2), slice(0, 1))
    return VPSDE(GaussianScore(torch.zeros(A.shape), A, 0.5, VPSDE(network, event)), event)


@pytest.mark.parametrize("how", ["hook", "forward", "class"])
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_part_of_a_network(kind: str, name: str, how: str, monkeypatch: pytest.MonkeyPatch):
    """What is hooked to any part, or put in place of its forward or its class's, is called."""
    make, event = NETWORKS[kind]
    network, calls = make(), 0
    part = network.get_submodule(name)

    def twice(_: nn.Module, __: object, result: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 2 * result

    if how == "hook":
        part.register_forward_hook(twice)
    elif how == "class":
        own = type(part).forward

        def patched(part: nn.Module, *args: object) -> Tensor:
            return twice(part, args, own(part, *args))

        monkeypatch.setattr(type(part), "forward", patched)
    else:
        forward = part.forward
        part.forward = lambda *args: twice(part, args, forward(*args))  # type: ignore[method-assign]

    x = torch.randn(2, *event)
    with ops.backend("reference"):
        expected = network(x, T), guided(network, event).eps(x, T)
    calls, before = 0, calls
    result = network(x, T), guided(network, event).eps(x, T)
    assert calls > 0
    assert before > 0
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Doubled(MCScoreNet):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, t, c)


class Stronger(GaussianScore):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, t, c)


class Rectified(Subsample):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_subclass_of_a_network():
    network, (_, event) = mlp(), NETWORKS["mlp"]
    network.__class__ = Doubled
    x = torch.randn(2, *event)
    with ops.backend("reference"):
        expected = guided(network, event).eps(x, T)
    torch.testing.assert_close(guided(network, event).eps(x, T), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_another_guidance(how: str):
    """Evaluated in pieces it would be what its class is without."""
    event = (9, 3)
    sde = guided(mlp(), event)
    x1 = torch.randn(2, *event)
    options = {"steps": 3, "x1": x1, "clip": 3.0}
    before = sample(sde, (2,), **options)

    if how == "subclass":
        sde.eps.__class__ = Stronger
    else:
        sde.eps.register_forward_hook(lambda module, args, result: 2 * result)
    name = type(sde.eps).__name__
    assert f"{name}, called as it is" in str(explain(sde))

    wrapped = VPSDE(lambda x, t, c: sde.eps(x, t, c), event)
    assert torch.equal(sample(sde, (2,), **options), sample(wrapped, (2,), **options))
    assert not torch.allclose(sample(sde, (2,), **options), before)


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_another_observation_operator(how: str):
    """The product of the class that it is derived from is another operator's."""
    event, x = (9, 3), torch.randn(2, 9, 3)
    sde = guided(mlp(), event)
    plain, y = Subsample(event, slice(None, None, 2), slice(0, 1)), sde.eps.y
    A = Subsample(event, slice(None, None, 2), slice(0, 1))
    expected = GaussianScore(y, lambda x: plain(x).relu(), 0.5, sde.eps.sde)(x, T)

    if how == "subclass":
        A = Rectified(event, slice(None, None, 2), slice(0, 1))
    sde.eps.A = A
    if how == "hook":
        A.register_forward_hook(lambda module, args, result: result.relu())
    torch.testing.assert_close(sde.eps(x, T), expected)
    assert "its operator by autograd" in str(explain(sde))


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_another_observation_operator_as_a_part(how: str):
    event, x = (9, 3), torch.randn(2, 9, 3)
    slices = slice(None, None, 2), slice(0, 1)
    if how == "subclass":
        A: Subsample = Rectified(event, *slices)
    else:
        A = Subsample(event, *slices)
        A.register_forward_hook(lambda module, args, result: result.relu())
    half = Subsample(A.shape, slice(0, 2))
    whole = Stack(half @ A, A)

    leaf = x.clone().requires_grad_()
    part = leaf[:, ::2, :1].relu()
    y = torch.cat([part[:, :2].flatten(1), part.flatten(1)], dim=1)
    torch.testing.assert_close(whole(x), y)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, leaf, g)
    torch.testing.assert_close(whole.vjp(x, g), expected)


def test_method_that_stands_for_calls():
    class Callable:
        def __call__(self) -> None: ...

        def method(self) -> None: ...

    class Inherits(Callable): ...

    class CallsOtherwise(Callable):
        def __call__(self) -> None: ...

    class Both(CallsOtherwise):
        def method(self) -> None: ...

    assert [stands_for_call(kind(), "method") for kind in (Callable, Inherits, Both)] == [True] * 3
    assert not stands_for_call(CallsOtherwise(), "method")
    assert not stands_for_call(Callable(), "another")
    assert not stands_for_call(lambda: None, "method")
