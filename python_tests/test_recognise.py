"""Stand-ins for the objects of existing code: what is recognised, and what is not trusted."""

import copy
import gc
import weakref
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import (
    DPSGaussianScore,
    GaussianScore,
    LikelihoodScore,
    MCScoreNet,
    MCScoreWrapper,
    MMPSGaussianScore,
    ScoreUNet,
    explain,
    ops,
    sample,
)
from sda_fast.packing import Panels
from sda_fast.recognise import agrees, twin

pytestmark = pytest.mark.skipif(
    ops.unserved(torch.empty(0)) is not None, reason="the native library is not built"
)


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, unbiased=True, dim=-1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Embedding(nn.Sequential):
    def __init__(self, features: int):
        super().__init__(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, features))
        self.register_buffer("freqs", torch.pi * torch.arange(1, 17))

    def forward(self, t: Tensor) -> Tensor:
        t = self.freqs * t.unsqueeze(-1)
        return super().forward(torch.cat((t.cos(), t.sin()), dim=-1))


class Kernel(nn.Module):
    def __init__(self, inputs: int, outputs: int, widths: list[int]):
        super().__init__()
        self.embedding = Embedding(8)
        layers: list[nn.Module] = []
        for before, after in zip([inputs + 8, *widths], [*widths, outputs], strict=True):
            if before != after:
                layers.append(nn.Linear(before, after))
            inner = nn.Linear(after, after), nn.SiLU(), nn.Linear(after, after)
            layers.append(Residual(Norm(), *inner))
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        others = [self.embedding(t)] + ([] if c is None else [c])
        return self.network(torch.cat((x, *(y.expand(*x.shape[:-1], -1) for y in others)), dim=-1))


class WindowParts(nn.Module):
    def __init__(self, order: int = 2, context: int = 0):
        super().__init__()
        self.order = order
        self.kernel = Kernel(3 * (2 * order + 1) + context, 3 * (2 * order + 1), [32, 32])

    def composed(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        k, w = self.order, 2 * self.order + 1
        y = x.unfold(1, w, 1).movedim(-1, 2).flatten(2)
        y = self.kernel(y, t, c).unflatten(2, (w, 3))
        return torch.cat((y[:, 0, :k], y[:, :, k], y[:, -1, -k:]), dim=1)


class Windows(WindowParts):
    """A composed network as existing code has it."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.composed(x, t, c)


class GuidanceParts(nn.Module):
    def __init__(self, network: nn.Module, scale: float = 1.0):
        super().__init__()
        self.y, self.A = torch.zeros(3, 1), lambda x: x[..., ::8, :1]
        self.std, self.gamma, self.detach = torch.tensor(1.0), torch.tensor(1.0), False
        self.sde, self.scale = process(network), scale

    def guided(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps = self.sde.eps(x, t, c)
            error = self.y - self.A((x - sigma * eps) / mu)
            variance = self.std**2 + self.gamma * (sigma / mu) ** 2
            (s,) = torch.autograd.grad(-(error**2 / variance).sum() / 2, x)
        return eps.detach() - self.scale * sigma * s


class Guidance(GuidanceParts):
    """A guidance module as existing code has it."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.guided(x, t, c)


class Baseline(GuidanceParts):
    """Diffusion posterior sampling as existing code has it, which takes no context."""

    def __init__(self, network: nn.Module):
        super().__init__(network)
        self.zeta = 0.3
        del self.std, self.gamma, self.detach

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps = self.sde.eps(x, t)
            error = (self.y - self.A((x - sigma * eps) / mu)).square().sum()
            (gradient,) = torch.autograd.grad(error, x)
        return eps.detach() + sigma * self.zeta * gradient / error.sqrt()


GUIDED = {"prior": lambda network: network, "gaussian": Guidance, "dps": Baseline}


def process(eps: Any) -> Any:
    def mu(t: Tensor) -> Tensor:
        return torch.cos(1.5 * t) ** 2

    return SimpleNamespace(
        shape=(20, 3), eps=eps, mu=mu, sigma=lambda t: (1 - mu(t) ** 2 + 1e-6).sqrt()
    )


def samples(sde: Any, backend: str) -> Tensor:
    return sample(sde, (2,), steps=4, corrections=1, tau=0.1, seed=1, backend=backend)


@pytest.fixture
def network() -> Windows:
    torch.manual_seed(0)
    return Windows().requires_grad_(False)


def test_network(network: Windows):
    ours = twin(network)
    x, t = torch.randn(2, 20, 3), torch.tensor(0.5)

    assert isinstance(ours, MCScoreNet)
    torch.testing.assert_close(ours(x, t), network(x, t))
    assert all(p is q for p, q in zip(ours.parameters(), network.parameters(), strict=True))
    assert agrees(network, ours, x)


def test_network_with_context():
    network = Windows(order=1, context=4).requires_grad_(False)
    x, t, c = torch.randn(2, 20, 3), torch.tensor(0.5), torch.randn(4)
    torch.testing.assert_close(twin(network)(x, t, c), network(x, t, c))


@pytest.mark.parametrize("law", list(GUIDED))
def test_samples_are_the_same(network: Windows, law: str):
    sde = process(GUIDED[law](network))
    torch.testing.assert_close(
        samples(sde, "native"), samples(sde, "reference"), rtol=1e-4, atol=1e-4
    )
    assert "recognised" in str(explain(sde))
    assert "fused" in str(explain(sde))


def test_own_modules_have_no_twin(network: Windows):
    ours = twin(network)
    assert twin(ours) is None
    assert twin(GaussianScore(torch.zeros(3), lambda x: x, 1.0, process(ours))) is None


def test_changed_weights_are_seen(network: Windows):
    before = samples(process(network), "native")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)

    after = samples(process(network), "native")
    assert not torch.allclose(after, before, rtol=1e-2)
    torch.testing.assert_close(after, samples(process(network), "reference"), rtol=1e-4, atol=1e-4)


def test_a_twin_is_made_once(network: Windows, monkeypatch: pytest.MonkeyPatch):
    first = samples(process(network), "native")
    packed: list[Tensor] = []
    matrix = Panels.matrix

    def counted(self: Panels, weight: Tensor) -> Tensor:
        packed.append(weight)
        return matrix(self, weight)

    monkeypatch.setattr(Panels, "matrix", counted)
    assert twin(network) is twin(network)
    assert torch.equal(samples(process(network), "native"), first)
    assert not packed

    with torch.no_grad():
        network.kernel.network[0].weight.mul_(0.9)
    assert not torch.equal(samples(process(network), "native"), first)
    assert packed


@pytest.mark.parametrize("change", ["parameter", "buffer", "module", "block", "train", "order"])
def test_a_changed_network_has_another_twin(network: Windows, change: str):
    before = twin(network)
    layers = network.kernel.network
    if change == "parameter":
        layers[0].weight = nn.Parameter(0.9 * layers[0].weight, requires_grad=False)
    elif change == "buffer":
        network.kernel.embedding.freqs = 0.9 * network.kernel.embedding.freqs
    elif change == "module":
        for block in (layers[1], layers[2], layers[4]):
            block[2] = nn.ReLU()
    elif change == "block":
        del layers[2]
    elif change == "train":
        network.train(not network.training)
    else:
        network.order = 7  # windows of 15 states of one feature
    after = twin(network)

    assert after is not before
    assert isinstance(after, MCScoreNet)
    assert after.training == network.training
    assert after.order == network.order
    if change != "order":
        x, t = torch.randn(2, 20, 3), torch.tensor(0.5)
        torch.testing.assert_close(after(x, t), network(x, t))


def test_a_twin_does_not_outlive_its_network():
    network = Windows()
    ours = weakref.ref(twin(network))
    assert ours() is not None
    assert agrees(network, ours(), torch.randn(2, 20, 3))
    del network
    gc.collect()
    assert ours() is None


@pytest.mark.parametrize("guided", [False, True])
def test_what_has_hooks_has_no_twin(network: Windows, guided: bool):
    """They are for calls, which a twin does not make."""
    seen: list[Tensor] = []
    network.kernel.network[1].register_forward_hook(lambda m, args, y: seen.append(y))
    score = Guidance(network) if guided else network
    assert twin(score) is None
    samples(process(score), "native")
    assert len(seen) == 8


class OtherForward(WindowParts):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return 1.0001 * self.composed(x, t, c)


@pytest.mark.parametrize("guided", [False, True])
def test_what_only_looks_alike_is_called(guided: bool):
    torch.manual_seed(0)
    look_alike = Guidance(Windows(), scale=1.5) if guided else OtherForward()
    look_alike.requires_grad_(False)

    assert twin(look_alike) is not None
    result, expected = (samples(process(look_alike), name) for name in ("native", "reference"))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)

    plan = explain(process(look_alike))
    assert plan.estimator is look_alike
    assert "but other numbers" in str(plan)
    assert "fused" not in str(plan)


OURS: dict[str, Any] = {
    "gaussian": lambda sde: GaussianScore(torch.full((5, 1), 0.5), observed, 0.3, sde, gamma=0.1),
    "detached": lambda sde: GaussianScore(torch.zeros(5, 1), observed, 0.3, sde, detach=True),
    "dps": lambda sde: DPSGaussianScore(torch.full((5, 1), 0.5), observed, sde, zeta=0.3),
    "mmps": lambda sde: MMPSGaussianScore(torch.full((5, 1), 0.5), observed, 0.3, sde),
    "likelihood": lambda sde: LikelihoodScore(
        lambda x: -observed(x).square().flatten(1).sum(1), sde
    ),
}


def observed(x: Tensor) -> Tensor:
    return x[:, ::4, :1]


@pytest.mark.parametrize("law", OURS)
@pytest.mark.parametrize("kind", [Windows, OtherForward])
def test_our_guidance_of_another_package_s_network(kind: type[WindowParts], law: str):
    """The network is served as it is by itself."""
    torch.manual_seed(0)
    network = kind().requires_grad_(False)
    sde = process(OURS[law](process(network)))
    results = [samples(sde, backend) for backend in ("native", "reference")]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)

    plan = explain(sde)
    agrees = kind is Windows
    assert ("but other numbers" in str(plan)) is not agrees
    assert ("fused" in str(plan)) is agrees
    assert sde.eps.sde.eps is network


@pytest.mark.parametrize("change", ["y", "weights", "network"])
def test_our_guidance_that_a_callback_changes(change: str):
    def drawn(backend: str, *, changed: bool) -> Tensor:
        torch.manual_seed(0)
        network = Windows().requires_grad_(False)
        sde = process(OURS["gaussian"](process(network)))

        def callback(n: int, t: float, x: Tensor) -> None:
            if n != 3 or not changed:
                return
            if change == "y":
                sde.eps.y = sde.eps.y + 50.0
            elif change == "weights":
                for p in network.parameters():
                    p.data.mul_(0.5)
            else:
                sde.eps.sde.eps = lambda x, t, c=None: 0.5 * x

        options: dict[str, Any] = {"steps": torch.linspace(0.9, 0, 7), "callback": callback}
        return sample(sde, (2,), seed=1, backend=backend, **options)

    result, expected = (drawn(backend, changed=True) for backend in ("native", "reference"))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    effect = (drawn("native", changed=False) - expected).norm() / expected.norm()
    assert float(effect) > 0.01


class Interval(GuidanceParts):
    """Guidance of some times only."""

    def __init__(self, network: nn.Module, first: float, last: float):
        super().__init__(network)
        self.times = first, last

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        guided = self.times[0] <= t <= self.times[1]
        return self.guided(x, t, c) if guided else self.sde.eps(x, t, c)


@pytest.mark.parametrize("times", [(0.0, 0.8), (0.03, 1.0), (0.1, 0.4)])
def test_guidance_of_some_times_is_called(network: Windows, times: tuple[float, float]):
    guide = Interval(network, *times)
    assert twin(guide) is not None
    assert not agrees(guide, twin(guide), torch.randn(2, 20, 3))


class Seen(WindowParts):
    """Remembers the trajectories that it was evaluated on."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.shapes = [*getattr(self, "shapes", []), x.shape]
        return self.composed(x, t, c)


@pytest.mark.parametrize("law", list(GUIDED))
def test_comparing_evaluates_a_few_windows(law: str):
    """A long trajectory may fit into memory by the twin alone."""
    network = Seen().requires_grad_(False)
    score = GUIDED[law](network)
    if law != "prior":
        score.y = torch.zeros(63, 1)
    assert agrees(score, twin(score), torch.randn(2, 500, 3))
    assert network.shapes == [(2, 7, 3), (2, 5, 3), (2, 5, 3)]


class Scaled(WindowParts):
    """Is what it seems to be as long as `scale` is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.table = 1.0, torch.ones(2)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        evaluated.append(x.shape)
        return self.scale * self.table[0] * self.composed(x, t, c)


evaluated: list[torch.Size] = []


def _compared(network: nn.Module, x: Tensor) -> tuple[bool, bool]:
    """Says whether a network agrees with its twin, and whether it was evaluated for that."""
    evaluated.clear()
    return agrees(network, twin(network), x), bool(evaluated)


def test_networks_are_compared_once():
    network, x = Scaled().requires_grad_(False), torch.randn(2, 20, 3)
    assert _compared(network, x) == (True, True)
    assert _compared(network, torch.randn(5, 20, 3)) == (True, False)
    assert _compared(network, torch.randn(2, 20, 3)) == (True, False)


@pytest.mark.parametrize(
    ("change", "agree"),
    [
        ("weights", True),
        ("data", True),
        ("mode", True),
        ("length", True),
        ("one", True),
        ("attribute", False),
        ("tensor", False),
        ("method", False),
        ("list", True),
    ],
)
def test_networks_are_compared_again(change: str, agree: bool, monkeypatch: pytest.MonkeyPatch):
    network, x = Scaled().requires_grad_(False), torch.randn(2, 20, 3)
    assert _compared(network, x) == (True, True)

    weight = network.kernel.network[0].weight
    if change == "weights":
        weight.mul_(0.9)
    elif change == "data":
        weight.data.mul_(0.9)
    elif change == "mode":
        network.kernel.eval()
    elif change == "length":
        x = x[:, :16]
    elif change == "one":
        x = x[:1]
    elif change == "attribute":
        network.scale = 1.1
    elif change == "tensor":
        network.table.mul_(1.1)
    elif change == "method":
        monkeypatch.setattr(WindowParts, "composed", lambda self, x, *_: 1.1 * x)
    else:
        network.seen = [1]  # it may come to hold anything, unseen
        assert _compared(network, x) == (agree, True)
    assert _compared(network, x) == (agree, True)
    assert _compared(network, x) == (agree, change == "list")


@pytest.mark.parametrize("law", ["gaussian", "dps"])
def test_guidance_of_a_look_alike_does_not_agree(law: str):
    score = GUIDED[law](OtherForward().requires_grad_(False))
    assert twin(score) is not None
    assert not agrees(score, twin(score), torch.randn(2, 20, 3))


class OfItsOrder(GuidanceParts):
    """Looks at more of the network than its estimate."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        assert x.shape[1] > 2 * self.sde.eps.order
        return self.guided(x, t, c)


class Derived(Windows):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return super().forward(x.clamp(-3.5, 3.5), t, c)


class DerivedGuidance(Guidance):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return super().forward(x, t, c) * (1 if t < 0.99 else 0.5)


@pytest.mark.parametrize("law", ["prior", "gaussian", "derived"])
def test_a_derived_class_of_another_forward_has_no_twin(law: str):
    """It may differ where no numbers are compared: for larger ones, or at a few times."""
    network = Derived() if law != "derived" else Windows()
    score = {**GUIDED, "derived": DerivedGuidance}[law](network.requires_grad_(False))
    assert twin(score) is None


class Coupled(GuidanceParts):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.guided(x, t, c) - 0.5 * (x - x.mean(0))


def test_guidance_that_couples_samples_does_not_agree(network: Windows):
    score = Coupled(network)
    assert twin(score) is not None
    assert not agrees(score, twin(score), torch.randn(4, 20, 3))


@pytest.mark.parametrize("change", ["tanh", "eps", "layer"])
def test_layers_of_other_settings_have_no_twin(change: str):
    """Parameters do not tell them, and numbers hardly."""
    network = Windows()
    assert twin(network) is not None
    blocks = [block for block in network.kernel.network if isinstance(block, Residual)]
    for block in blocks:
        if change == "tanh":
            block[2] = nn.GELU(approximate="tanh")
        elif change == "eps":
            block[0].eps = 1e-4
    if change == "layer":
        network.kernel.embedding.append(nn.Tanh())
    assert twin(network) is None


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("frozen", ["all", "some", "none"])
def test_parameters_keep_whether_they_require_gradients(guided: bool, frozen: str):
    network = Windows().requires_grad_(frozen == "none")
    network.kernel.network[0].weight.requires_grad_(frozen != "all")
    before = [p.requires_grad for p in network.parameters()]
    samples(process(Guidance(network) if guided else network), "native")
    assert [p.requires_grad for p in network.parameters()] == before


def test_guidance_that_knows_its_network_agrees(network: Windows):
    score = OfItsOrder(network)
    assert agrees(score, twin(score), torch.randn(2, 20, 3))
    assert score.sde.eps is network


def test_what_asks_for_more_is_not_used(network: Windows):
    """Here what is predicted broadcasts to what was observed, which ours refuses."""
    guide = Guidance(network)
    guide.y = torch.zeros(2, 3, 2)
    result, expected = (samples(process(guide), name) for name in ("native", "reference"))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["activation", "order", "missing", "layers", "not a module"])
def test_other_structures_have_no_twin(network: Windows, change: str):
    other: Any = copy.deepcopy(network)
    if change == "activation":
        other.kernel.network[1][2] = nn.Tanh()
    elif change == "order":
        other.order = 3
    elif change == "missing":
        del other.kernel.embedding
    elif change == "layers":
        other.kernel.network.append(nn.LayerNorm(15))
    else:
        other = lambda x, t, c: x  # noqa: E731
    assert twin(other) is None


class FieldNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, unbiased=True, dim=-3, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()


class FieldBlock(nn.Module):
    def __init__(self, channels: int, convolution: Any):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(8, channels), nn.Unflatten(-1, (channels, 1, 1)))
        self.residue = nn.Sequential(
            FieldNorm(), convolution(channels, channels), nn.SiLU(), convolution(channels, channels)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.residue(x + self.project(y))


class FieldNetwork(nn.Module):
    def __init__(self, inputs: int, outputs: int, channels: list[int], mode: str):
        super().__init__()

        def convolution(a: int, b: int, stride: int = 1) -> nn.Module:
            return nn.Conv2d(a, b, 3, stride, 1, padding_mode=mode)

        def level(n: int) -> nn.Module:
            return nn.ModuleList(FieldBlock(n, convolution) for _ in range(2))

        def up(a: int, b: int) -> nn.Module:
            return nn.Sequential(FieldNorm(), nn.Upsample(scale_factor=2), convolution(a, b))

        pairs = list(pairwise(channels))
        self.heads = nn.ModuleList([convolution(inputs, channels[0])])
        self.heads.extend(nn.Sequential(convolution(a, b, 2)) for a, b in pairs)
        self.tails = nn.ModuleList(up(b, a) for a, b in reversed(pairs))
        self.tails.append(convolution(channels[0], outputs))
        self.descent = nn.ModuleList(map(level, channels))
        self.ascent = nn.ModuleList(map(level, reversed(channels)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        skips = []
        for head, blocks in zip(self.heads, self.descent, strict=True):
            x = head(x)
            for block in blocks:
                x = block(x, y)
            skips.append(x)
        skips.pop()
        for tail, blocks in zip(self.tails, self.ascent, strict=True):
            for block in blocks:
                x = block(x, y)
            x = tail(x) + skips.pop() if skips else tail(x)
        return x


class FieldKernel(nn.Module):
    """A network of windows of three states of two channels, told a forcing or not."""

    def __init__(self, forced: bool, mode: str = "circular"):
        super().__init__()
        self.embedding = Embedding(8)
        self.network = FieldNetwork(6 + forced, 6, [8, 16], mode)
        if forced:
            self.register_buffer("forcing", torch.randn(1, 8, 8))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        y = x.reshape(-1, *x.shape[-3:])
        if hasattr(self, "forcing"):
            y = torch.cat((y, self.forcing.expand(len(y), -1, -1, -1)), dim=1)
        return self.network(y, self.embedding(t.reshape(-1))).reshape(x.shape)


class FieldWindows(nn.Module):
    order = 1

    def __init__(self, forced: bool, mode: str = "circular"):
        super().__init__()
        self.kernel = FieldKernel(forced, mode)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        y = x.unfold(1, 3, 1).movedim(-1, 2).flatten(2, 3)
        y = self.kernel(y, t).unflatten(2, (3, 2))
        return torch.cat((y[:, 0, :1], y[:, :, 1], y[:, -1, -1:]), dim=1)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("forced", [False, True])
def test_network_of_fields(forced: bool, mode: str):
    torch.manual_seed(0)
    network = FieldWindows(forced, mode).requires_grad_(False)
    ours = twin(network)
    x, t = torch.randn(2, 6, 2, 8, 8), torch.tensor(0.5)

    assert isinstance(ours, MCScoreNet)
    assert all(p is q for p, q in zip(ours.parameters(), network.parameters(), strict=True))
    torch.testing.assert_close(ours(x, t), network(x, t), rtol=1e-4, atol=1e-5)
    assert agrees(network, ours, x)

    sde = process(network)
    sde.shape = (6, 2, 8, 8)
    assert "its U-Net fused" in str(explain(sde))
    torch.testing.assert_close(
        samples(sde, "native"), samples(sde, "reference"), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_network_of_single_fields(forced: bool, guided: bool):
    torch.manual_seed(0)
    network = FieldKernel(forced).requires_grad_(False)
    ours = twin(network)
    x, t = torch.randn(2, 6, 8, 8), torch.tensor(0.5)

    assert isinstance(ours, ScoreUNet)
    assert all(p is q for p, q in zip(ours.parameters(), network.parameters(), strict=True))
    torch.testing.assert_close(ours(x, t), network(x, t), rtol=1e-4, atol=1e-5)

    sde = process(network)
    sde.shape = (6, 8, 8)
    if guided:
        guide = Guidance(network)
        guide.y, guide.sde = torch.zeros(6, 1, 1), sde
        guide.A = lambda x: x[..., ::8, :1]
        sde = process(guide)
        sde.shape = (6, 8, 8)
    assert "its U-Net fused" in str(explain(sde))
    torch.testing.assert_close(
        samples(sde, "native"), samples(sde, "reference"), rtol=1e-3, atol=1e-3
    )


class Wrapper(nn.Module):
    def __init__(self, score: nn.Module):
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.score(x.transpose(1, 2), t, c).transpose(1, 2)


def test_network_over_time():
    """The paper's baseline of composition."""
    torch.manual_seed(0)
    inner = ScoreUNet(3, embedding=8, hidden_channels=(8, 16), hidden_blocks=(1, 1), spatial=1)
    network = Wrapper(inner).requires_grad_(False)
    ours = twin(network)
    assert isinstance(ours, MCScoreWrapper)
    assert all(p is q for p, q in zip(ours.parameters(), network.parameters(), strict=True))
    x, t = torch.randn(2, 20, 3), torch.tensor(0.5)
    torch.testing.assert_close(ours(x, t), network(x, t), rtol=1e-4, atol=1e-5)
    assert agrees(network, ours, x)
    assert "its U-Net fused" in str(explain(process(network)))


@pytest.mark.parametrize("change", ["activation", "layers", "blocks"])
def test_other_networks_of_fields_have_no_twin(change: str):
    network = FieldWindows(forced=False)
    block = network.kernel.network.ascent[0][0]
    if change == "activation":
        network.kernel.network.descent[0][0].residue[2] = nn.ReLU()
    elif change == "layers":
        block.residue.append(nn.Conv2d(16, 16, 1))
    else:
        network.kernel.network.ascent[0].append(FieldBlock(16, nn.Identity))
    assert twin(network) is None


@pytest.mark.parametrize("law", ["gaussian", "dps"])
def test_guidance_that_a_callback_changes(network: Windows, law: str):
    def change(step: int, t: float, x: Tensor) -> None:
        if step == 2:
            sde.eps.y = torch.ones(3, 1)
            if law == "dps":
                sde.eps.zeta = 0.1

    results = []
    for backend in ("native", "reference"):
        sde = process(GUIDED[law](network))
        results.append(sample(sde, (2,), steps=4, seed=1, backend=backend, callback=change))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        results[0], sample(process(GUIDED[law](network)), (2,), steps=4, seed=1)
    )
