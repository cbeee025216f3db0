"""What a user's code changes while samples are drawn, or between them, or keeps of a sample."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import oracles
import pytest
import torch
from test_recognise import Guidance, GuidanceParts, Windows
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook

from sda_fast import (
    VPSDE,
    GaussianScore,
    LikelihoodScore,
    MCScoreNet,
    ScoreUNet,
    _native,
    explain,
    ops,
    sample,
)
from sda_fast import nn as own
from sda_fast.recognise import agrees, twin
from sda_fast.score import sampling

EVENT = (7, 3)
LAYERS = (nn.Linear, nn.Conv2d)


def windows(activation: type[nn.Module] = nn.SiLU) -> MCScoreNet:
    torch.manual_seed(0)
    return MCScoreNet(
        3, order=1, embedding=8, hidden_features=[16] * 2, activation=activation
    ).requires_grad_(False)


def unet() -> ScoreUNet:
    torch.manual_seed(0)
    return ScoreUNet(
        2, spatial=2, embedding=8, hidden_channels=[8, 16], hidden_blocks=[3, 1], kernel_size=3
    ).requires_grad_(False)


def agree(eps: nn.Module, event: tuple[int, ...] = EVENT) -> None:
    """Asserts that samples are what calls of the module make them."""
    sde = VPSDE(eps, event)
    first, expected = (
        sample(copy.deepcopy(sde), (2,), steps=4, seed=1, backend=backend)
        for backend in ("auto", "reference")
    )
    assert float((first - expected).norm() / expected.norm()) < 1e-4


# While samples are drawn


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = windows()
        self.members = [
            {name: p + 0.1 * i for name, p in self.network.named_parameters()} for i in range(3)
        ]

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return sum(functional_call(self.network, p, (x, t, c)) for p in self.members) / 3  # type: ignore[return-value]


class ScaledInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.original = windows(), windows()

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        pairs = zip(self.network.parameters(), self.original.parameters(), strict=True)
        with torch.no_grad():
            for p, q in pairs:
                p.copy_((0.5 + t) * q)
        return self.network(x, t, c)


class ExpertOfATime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = windows()
        self.late = copy.deepcopy(self.network.kernel)
        self.early = copy.deepcopy(self.network.kernel)
        for p in self.early.parameters():
            p.mul_(1.5)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.network.kernel = self.early if t > 0.5 else self.late
        return self.network(x, t, c)


class Otherwise(nn.Module):
    """Evaluates a network as it is, and once more while something of it is otherwise, as steering
    and perturbed guidance do."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = windows() if network is None else network

    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        eps = self.network(x, t)
        with self.otherwise(t):
            return eps + 0.5 * (eps - self.network(x, t))


class Hooked(Otherwise):
    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        handle = layer(self.network).register_forward_hook(lambda m, args, y: 0.3 * y)
        yield
        handle.remove()


class HookedUNet(Hooked):
    def __init__(self) -> None:
        super().__init__(unet())


class OfAnotherForward(Otherwise):
    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        kernel: Any = self.network.kernel
        kernel.forward = lambda x, t, c=None: 0.3 * type(kernel).forward(kernel, x, t, c)
        yield
        del kernel.forward


class OfAnotherSetting(Otherwise):
    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        norm = [m for m in self.network.modules() if isinstance(m, own.LayerNorm)][-1]
        norm.eps = 100.0
        yield
        norm.eps = 1e-5


class Merged(Otherwise):
    """With another weight for a while, which may lie where the one before did."""

    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        weight = layer(self.network).weight
        before, weight.data = weight.data, (0.5 + t) * weight.data
        yield
        weight.data = before


class OfAnotherPrecision(Otherwise):
    @contextmanager
    def otherwise(self, t: Tensor) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        yield
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not _native.has_bfloat16(), reason="there are no products in bfloat16")
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_a_precision_for_one_of_two_evaluations(kind: str):
    network = OfAnotherPrecision(windows() if kind == "mlp" else unet())
    x, t = torch.randn(2, *(EVENT if kind == "mlp" else (2, 8, 8))), torch.tensor(0.5)
    with torch.no_grad():
        expected = network(x, t)
        with sampling():
            assert torch.equal(network(x, t), expected)
            assert not torch.equal(network.network(x, t), expected)


class Hypernetwork(nn.Module):
    """Gives a layer a weight that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = windows()
        self.layer: Any = layer(self.network)
        self.weight = self.layer.weight.detach().clone()
        del self.layer.weight

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.layer.weight = (0.5 + t) * self.weight
        return self.network(x, t)


class Copied(Ensemble):
    """Puts its members into one network through `data`, which torch does not count."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        eps = torch.zeros_like(x)
        for member in self.members:
            for name, p in self.network.named_parameters():
                p.data.copy_(member[name])
            eps = eps + self.network(x, t) / len(self.members)
        return eps


class Momentum(nn.Module):
    """Keeps the state that it was given last."""

    last: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        eps = 0.9 * x if self.last is None else 0.9 * x - 0.3 * (x - self.last)
        self.last = x
        return eps


@pytest.mark.parametrize("make", [Ensemble, ScaledInPlace, ExpertOfATime, Copied, Hypernetwork])
def test_weights_that_change_with_time(make: Any):
    agree(make())


@pytest.mark.parametrize("make", [Hooked, OfAnotherForward, OfAnotherSetting, Merged])
@pytest.mark.parametrize("guided", [False, True])
def test_a_network_that_is_otherwise_for_one_of_two_evaluations(make: Any, guided: bool):
    eps = make()
    if guided:
        y = torch.full((3, 1), 2.0)
        eps = GaussianScore(y, every_third, 0.3, VPSDE(eps, EVENT), gamma=1.0)
    agree(eps)


def test_a_u_net_that_is_otherwise_for_one_of_two_evaluations():
    agree(HookedUNet(), (2, 8, 8))


@pytest.mark.parametrize("change", ["data in place", "a hook"])
def test_a_sample_within_a_sample(change: str):
    """It looks at the network anew, which was evaluated before."""
    network, results = windows(), []

    def eps(x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        network(x, t)
        if not results:
            CHANGES[change](None, network)
            for backend in ("auto", "reference"):
                sde = VPSDE(copy.deepcopy(network) if backend == "reference" else network, EVENT)
                results.append(sample(sde, (2,), steps=4, seed=5, backend=backend))
        return 0.9 * x

    sample(oracles.Process(eps, EVENT), (2,), steps=2)
    result, expected = results
    assert float((result - expected).norm() / expected.norm()) < 1e-4


def test_an_operator_that_learns():
    """On states that it takes from the graph, with a network of its own."""

    def losses(backend: str) -> list[float]:
        network, found = windows().requires_grad_(), []
        optimizer = torch.optim.SGD(network.parameters(), 1e-2)

        def A(x: Tensor) -> Tensor:
            with torch.enable_grad():
                optimizer.zero_grad()
                loss = network(x.detach(), torch.tensor(0.3)).square().mean()
                loss.backward()
                optimizer.step()
            found.append(float(loss.detach()))
            return every_third(x)

        prior = VPSDE(windows(), EVENT)
        sde = VPSDE(GaussianScore(torch.zeros(3, 1), A, 0.3, prior, gamma=1.0), EVENT)
        sample(sde, (2,), steps=torch.linspace(0.5, 0, 4), seed=1, backend=backend)
        return found

    found, expected = losses("auto"), losses("reference")
    assert len(found) == len(expected) == 3
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_state_that_is_kept():
    """It stays what it was when the estimate was asked for."""
    x1 = torch.randn(2, *EVENT)
    sde = VPSDE(Momentum(), EVENT)
    result = sample(sde, (2,), steps=4, x1=x1)

    eps, x = Momentum(), x1
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    for t, s in pairwise(times):
        r = sde.mu(s) / sde.mu(t)
        x = float(r) * x + float(sde.sigma(s) - r * sde.sigma(t)) * eps(x, t)
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-5)


def layer(network: Any) -> Any:
    return next(
        m for m in getattr(network, "kernel", network).network.modules() if type(m) in LAYERS
    )


def another() -> MCScoreNet:
    network = windows()
    for p in network.parameters():
        p.mul_(2.0)
    return network


def faint(m: nn.Module, args: Any, result: Tensor) -> Tensor:
    return 0.1 * result


forwards = pytest.MonkeyPatch()  # undone after each run

CHANGES: dict[str, Any] = {
    "in place": lambda s, n: [p.mul_(0.5) for p in n.parameters()],
    "data in place": lambda s, n: [p.data.mul_(0.5) for p in n.parameters()],
    "other data": lambda s, n: [setattr(p, "data", 0.5 * p.data) for p in n.parameters()],
    "assigned": lambda s, n: n.load_state_dict(
        {name: 0.5 * p for name, p in n.state_dict().items()}, assign=True
    ),
    "a parameter": lambda s, n: setattr(layer(n), "weight", nn.Parameter(0.1 * layer(n).weight)),
    "its kernel": lambda s, n: (
        setattr(n, "kernel", copy.deepcopy(n.kernel).requires_grad_(False))
        or [p.mul_(0.5) for p in n.kernel.parameters()]
    ),
    "data of its embedding": lambda s, n: n.kernel.embedding[-1].weight.data.mul_(50.0),
    "a hook": lambda s, n: n.kernel.register_forward_hook(faint),
    "its forward": lambda s, n: setattr(n, "forward", lambda x, t, c=None: 0.1 * x),
    "a class's forward": lambda s, n: forwards.setattr(
        nn.Linear, "forward", lambda m, x: 0.5 * nn.functional.linear(x, m.weight)
    ),
    "the estimator": lambda s, n: setattr(s, "eps", another()),
}
CHANGES_OF_GUIDANCE: dict[str, Any] = {
    "y": lambda s, n: setattr(s.eps, "y", s.eps.y + 3.0),
    "y in place": lambda s, n: s.eps.y.add_(3.0),
    "its process": lambda s, n: setattr(s.eps, "sde", VPSDE(another(), EVENT)),
    "its estimator": lambda s, n: setattr(s.eps.sde, "eps", another()),
    "std": lambda s, n: setattr(s.eps, "std", torch.tensor(1.0)),
}
FOLLOWED = [
    *((kind, change) for kind in ("own", "theirs", "own guided", "guided") for change in CHANGES),
    *((kind, change) for kind in ("own guided", "guided") for change in CHANGES_OF_GUIDANCE),
]


@pytest.mark.parametrize(("kind", "change"), FOLLOWED)
def test_what_a_callback_changes_is_followed(kind: str, change: str):
    """By what runs natively as by the modules themselves, which are another package's or ours."""

    def drawn(backend: str, *, changed: bool) -> Tensor:
        torch.manual_seed(0)
        network: Any = windows() if kind.startswith("own") else Windows(order=1)
        network.requires_grad_(False)
        sde = VPSDE(network, EVENT)
        if kind == "own guided":
            y = torch.full((3, 1), 2.0)
            sde = VPSDE(GaussianScore(y, every_third, 0.3, sde, gamma=1.0), EVENT)
        elif kind == "guided":
            guide = Guidance(network)
            guide.y, guide.std, guide.A = torch.full((3, 1), 2.0), torch.tensor(0.3), every_third
            sde = VPSDE(guide, EVENT)

        def callback(n: int, t: float, x: Tensor) -> None:
            if changed and n == 3:
                (CHANGES | CHANGES_OF_GUIDANCE)[change](sde, network)

        steps = torch.linspace(0.9, 0, 7)  # later than where the first step magnifies noise
        try:
            return sample(sde, (2,), steps=steps, seed=1, callback=callback, backend=backend)
        finally:
            forwards.undo()

    native, expected = (drawn(backend, changed=True) for backend in ("auto", "reference"))
    torch.testing.assert_close(native, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    effect = (drawn("reference", changed=False) - expected).norm() / expected.norm()
    assert float(effect) > 0.01


class Weighed(GuidanceParts):
    """Guidance with a weight, wherever it is kept."""

    def __init__(self, network: nn.Module, weight: Callable[[], Tensor | float]):
        super().__init__(network)
        self.y, self.std, self.A = torch.full((3, 1), 2.0), torch.tensor(0.3), every_third
        self.weight = weight

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        eps = self.sde.eps(x, t, c)
        return eps + self.weight(self) * (self.guided(x, t, c) - eps)  # type: ignore[call-arg]


WEIGHTS: dict[str, Any] = {  # how it is set, read and changed
    "private": (
        lambda g: setattr(g, "_w", 1.0),
        lambda g: g._w,
        lambda g: setattr(g, "_w", 0.0),
    ),
    "a dictionary's": (
        lambda g: setattr(g, "settings", {"w": 1.0}),
        lambda g: g.settings["w"],
        lambda g: g.settings.update(w=0.0),
    ),
    "a tensor": (
        lambda g: setattr(g, "w", torch.tensor(1.0)),
        lambda g: g.w,
        lambda g: g.w.zero_(),
    ),
    "a buffer": (
        lambda g: g.register_buffer("w", torch.tensor(1.0), persistent=False),
        lambda g: g.w,
        lambda g: g.w.zero_(),
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_a_callback_changes_within_others_guidance(kind: str):
    """Of which a twin serves only as long as it is the same."""
    tell, read, change = WEIGHTS[kind]

    def drawn(backend: str, *, changed: bool) -> Tensor:
        torch.manual_seed(0)
        guide = Weighed(Windows(order=1).requires_grad_(False), read)
        tell(guide)

        def callback(n: int, t: float, x: Tensor) -> None:
            if changed and n == 3:
                change(guide)

        options: dict[str, Any] = {"steps": torch.linspace(0.9, 0, 7), "callback": callback}
        return sample(VPSDE(guide, EVENT), (2,), seed=1, backend=backend, **options)

    native, expected = (drawn(backend, changed=True) for backend in ("auto", "reference"))
    torch.testing.assert_close(native, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert float((drawn("auto", changed=False) - expected).norm() / expected.norm()) > 0.01


class Louder(nn.Module):
    """A process whose noise is louder by what is kept in one way or another."""

    def __init__(self, eps: nn.Module, kind: str):
        super().__init__()
        self.eps, k = eps, torch.tensor(1.0)
        if kind == "a parameter":
            self.k = nn.Parameter(k, requires_grad=False)
        elif kind == "a buffer":
            self.register_buffer("k", k)
        else:
            self._k = k

    def mu(self, t: Tensor) -> Tensor:
        return torch.cos(1.5 * t)

    def sigma(self, t: Tensor) -> Tensor:
        k: Any = self._k if hasattr(self, "_k") else self.k
        return float(k) * (1 - self.mu(t) ** 2 + 1e-6).sqrt()


class Called(GaussianScore):
    """Has a forward of its own, and so is called as it is."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return super().forward(x, t, c)


@pytest.mark.parametrize("kind", ["a parameter", "a buffer", "private"])
def test_levels_that_a_callback_changes(kind: str):
    def drawn(guidance: type[GaussianScore], k: float) -> Tensor:
        prior = Louder(windows(), kind)
        guide = guidance(torch.full((3, 1), 2.0), every_third, 0.3, prior, gamma=1.0)

        def callback(n: int, t: float, x: Tensor) -> None:
            kept: Any = prior._k if kind == "private" else prior.k
            if n == 3:
                kept.data.fill_(k)

        options: dict[str, Any] = {"steps": torch.linspace(0.9, 0, 7), "callback": callback}
        return sample(VPSDE(guide, EVENT), (2,), seed=1, **options)

    expected = drawn(Called, 2.0)
    assert float((drawn(GaussianScore, 2.0) - expected).norm() / expected.norm()) < 1e-4
    assert float((drawn(GaussianScore, 1.0) - expected).norm() / expected.norm()) > 0.01


def test_a_setting_that_a_callback_changes():
    def drawn(backend: str, eps: float) -> Tensor:
        network = windows()
        norms = [m for m in network.modules() if isinstance(m, own.LayerNorm)]

        def callback(n: int, t: float, x: Tensor) -> None:
            norms[-1].eps = eps

        options: dict[str, Any] = {"steps": torch.linspace(0.9, 0, 7), "callback": callback}
        return sample(VPSDE(network, EVENT), (2,), seed=1, backend=backend, **options)

    native, expected = drawn("auto", 100.0), drawn("reference", 100.0)
    torch.testing.assert_close(native, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert float((drawn("auto", 1e-5) - expected).norm() / expected.norm()) > 0.01


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("change", ["in place", "data in place", "data of its embedding", "a hook"])
def test_changes_of_a_network_within_a_function(change: str, n: int):
    """Which is not known to be there: at the first step, and when it has been looked at before."""

    def drawn(backend: str, *, changed: bool) -> Tensor:
        network = windows()
        process = oracles.Process(lambda x, t, c=None: network(x, t), EVENT)

        def callback(step: int, t: float, x: Tensor) -> None:
            if changed and step == n:
                CHANGES[change](None, network)

        options: dict[str, Any] = {"steps": torch.linspace(0.9, 0, 7), "callback": callback}
        return sample(process, (2,), seed=1, backend=backend, **options)

    native, expected = (drawn(backend, changed=True) for backend in ("auto", "reference"))
    torch.testing.assert_close(native, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert float((drawn("auto", changed=False) - expected).norm() / expected.norm()) > 0.01


def test_a_callback_that_changes_nothing():
    sde = VPSDE(windows(), EVENT)
    options: dict[str, Any] = {"steps": 5, "corrections": 1, "seed": 1}
    expected = sample(sde, (2,), **options)
    assert torch.equal(sample(sde, (2,), callback=lambda n, t, x: None, **options), expected)


def every_third(x: Tensor) -> Tensor:
    return x[..., ::3, :1]


def test_gradients_within_a_callback():
    """It is run as if it were called outside: networks learn there."""
    network = windows().requires_grad_()
    found = []

    def callback(n: int, t: float, x: Tensor) -> None:
        network.zero_grad()
        with torch.enable_grad():
            network(x, torch.tensor(t)).square().sum().backward()
        found.append([p.grad is not None for p in network.parameters()])

    sample(VPSDE(network, EVENT), (2,), steps=2, callback=callback)
    assert len(found) == 2
    assert all(map(all, found))


# Between samples


def tie(block: nn.Module, other: nn.Module) -> None:
    """Gives a block the parameters of another."""
    for name, p in other.named_parameters():
        module, _, last = name.rpartition(".")
        setattr(block.get_submodule(module), last, p)


@pytest.mark.parametrize("change", ["eps", "padding", "tied"])
def test_a_u_net_that_changes_but_for_its_parameters(change: str):
    network, event = unet(), (2, 8, 8)
    first, second, third = network.network.descent[0]
    tie(third, first)
    before = sample(VPSDE(network, event), (2,), steps=4, seed=1)
    if change == "tied":
        tie(third, second)
    for module in network.modules():
        if change == "eps" and isinstance(module, own.LayerNorm):
            module.eps = 0.5
        if change == "padding" and isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    after, expected = (
        sample(VPSDE(network, event), (2,), steps=4, seed=1, backend=backend)
        for backend in ("auto", "reference")
    )
    assert not torch.allclose(after, before, rtol=1e-3)
    assert float((after - expected).norm() / expected.norm()) < 1e-4


DEPTHS = ["appended", "between", "bottleneck", "of a block", "shortened", "of the embedding"]


@pytest.mark.parametrize("how", ["parameter", "data"])
@pytest.mark.parametrize("make", [windows, unet])
def test_weights_that_take_the_place_of_others(
    make: Callable[[], nn.Module], how: str, monkeypatch: pytest.MonkeyPatch
):
    """In memory too, where only torch's count tells contents apart, as on a GPU."""
    monkeypatch.setattr(_native, "fingerprint", lambda x: None)
    network = make()
    x, t = torch.randn(2, *(EVENT if make is windows else (2, 8, 8))), torch.tensor(0.5)
    changed = layer(network)
    shape = changed.weight.shape
    for n in range(20):
        if how == "parameter":
            del changed.weight
            changed.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        else:
            changed.weight.data = torch.empty(0)
            changed.weight.data = torch.empty(shape)
        changed.weight.data.fill_(0.01 * n)
        result = network(x, t)
        with ops.backend("reference"):
            torch.testing.assert_close(result, network(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_residual_mlp_of_other_layers_is_called(depth: str):
    network: Any = windows()
    layers = network.kernel.network
    if depth == "appended":
        layers.append(nn.Linear(9, 9))
    elif depth == "between":
        layers.insert(2, nn.Linear(16, 16))
    elif depth == "of a block":
        layers[1].append(nn.Dropout(0.5))
        network.eval()
    elif depth == "shortened":
        del layers[1][3]
    elif depth == "of the embedding":
        network.kernel.embedding.append(nn.SiLU())
    else:
        layers[1][1], layers[1][3] = nn.Linear(16, 4), nn.Linear(4, 16)
    agree(network.requires_grad_(False))


def test_a_u_net_without_blocks():
    network = ScoreUNet(2, spatial=2, hidden_channels=[8], hidden_blocks=[0])
    agree(network.requires_grad_(False), (2, 8, 8))


def test_features_that_become_a_mask():
    """The columns of the first layer are packed anew."""
    network = MCScoreNet(3, context=3, order=1, embedding=8, hidden_features=[16] * 2)
    network.requires_grad_(False)
    x, t = torch.randn(2, *EVENT), torch.tensor(0.5)
    network(x, t, torch.ones(3))
    network.length_aware, network.context = True, 0
    result = network(x, t)
    with ops.backend("reference"):
        torch.testing.assert_close(result, network(x, t), rtol=1e-4, atol=1e-5)


class Quantised(Tensor):
    """Weights that are kept as integers, and are no numbers in memory themselves."""

    q: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, q.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, q: Tensor, scale: Tensor):
        self.q, self.scale = q, scale

    @classmethod
    def __torch_dispatch__(cls, f: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if f is torch.ops.aten.detach.default:
            return Quantised(args[0].q, args[0].scale)
        numbers = [a.q * a.scale if isinstance(a, Quantised) else a for a in args]
        return f(*numbers, **(kwargs or {}))


def quantised(weight: Tensor) -> Tensor:
    scale = weight.abs().max() / 127
    return Quantised((weight / scale).round().to(torch.int8), scale)


@pytest.mark.parametrize(
    ("kind", "weights"), [("mlp", quantised), ("mlp", Tensor.to_sparse), ("unet", quantised)]
)
def test_weights_that_are_not_simply_numbers_in_memory(kind: str, weights: Any):
    network: Any = windows() if kind == "mlp" else unet()
    last = layer(network)
    last.weight = nn.Parameter(weights(last.weight), requires_grad=False)
    event = EVENT if kind == "mlp" else (2, 8, 8)
    result, expected = (
        sample(VPSDE(network, event), (2,), steps=2, seed=1, backend=backend)
        for backend in ("auto", "reference")
    )
    assert float((result - expected).norm() / expected.norm()) < 1e-4
    assert "its weights are of type" in str(explain(VPSDE(network, event), (2,)))


@pytest.fixture
def _hook_of_all_modules() -> Iterator[None]:
    handle = register_module_forward_hook(
        lambda module, args, y: 1.1 * y if isinstance(module, nn.SiLU) else None
    )
    yield
    handle.remove()


@pytest.mark.usefixtures("_hook_of_all_modules")
def test_hooks_of_all_modules():
    agree(windows())


# What is kept


class Positions(nn.Module):
    """Makes what it adds to its input at the first call."""

    positions: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 9)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        if self.positions is None:
            self.positions = torch.linspace(-1, 1, x.shape[-1], device=x.device)
        return self.layer(x + self.positions)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 9)
        self.again = self.layer

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.again(torch.tanh(self.layer(x)))


@pytest.mark.parametrize("kernel", [Positions, Twice])
def test_a_plan_leaves_the_network_as_it_is(kernel: Any):
    """How many windows fit into memory is found out by a copy that has none."""
    network = windows()
    network.kernel = kernel().requires_grad_(False)
    explain(VPSDE(network, EVENT), (2,))
    assert not any(p.is_meta for p in network.parameters())
    assert getattr(network.kernel, "positions", None) is None
    agree(network)


# Samples that are not independent


def test_operators_that_couple_samples():
    """A batch is not split then, however large."""
    network = MCScoreNet(3, order=2, hidden_features=[128] * 3).requires_grad_(False)
    prior = VPSDE(network, (33, 3))
    x = torch.randn(512, 33, 3)

    def A(x: Tensor) -> Tensor:
        return (x - 0.9 * x.mean(0))[:, ::8]

    def log_prob(x: Tensor) -> Tensor:
        return -A(x).square().flatten(1).sum(1)

    for guide in (
        GaussianScore(torch.randn(5, 3), A, 1.0, prior),
        LikelihoodScore(log_prob, prior),
    ):
        assert guide.at_once(x) == len(x)
    apart = GaussianScore(torch.randn(5, 3), lambda x: x[:, ::8], 1.0, prior)
    assert apart.at_once(x) < len(x)


# Precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_comparisons_leave_the_precision_alone(precision: str, monkeypatch: pytest.MonkeyPatch):
    """Another package's network is compared with its twin in the precision that is set, which is
    that of all threads."""
    network = Windows(order=1).requires_grad_(False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "set_float32_matmul_precision", None)
            assert agrees(network, twin(network), torch.randn(2, *EVENT))
            sample(VPSDE(network, EVENT), (2,), steps=2)
    finally:
        torch.set_float32_matmul_precision(before)


# Context


def test_labels_as_context():
    """A network of the user's own takes what it likes."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Embedding(4, 3)

        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return 0.9 * x + self.shift(c)[:, None]

    labels = torch.tensor([1, 3])
    sde = VPSDE(Labelled().requires_grad_(False), EVENT)
    first, expected = (
        sample(sde, (2,), labels, steps=4, seed=1, backend=backend)
        for backend in ("auto", "reference")
    )
    torch.testing.assert_close(first, expected)
    assert not torch.allclose(first, sample(sde, (2,), labels.flip(0), steps=4, seed=1))
