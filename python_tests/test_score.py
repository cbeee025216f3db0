"""Score networks against the formulas, from single states to composed trajectories."""

from collections.abc import Callable

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sda_fast import (
    VPSDE,
    Centre,
    GaussianScore,
    Junction,
    MCScoreNet,
    MCScoreWrapper,
    ScoreNet,
    ScoreUNet,
    explain,
    ops,
    sample,
    score,
)

BACKENDS = ["auto", "reference"]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def expand(t: Tensor, *shape: int) -> Tensor:
    return t.reshape((*t.shape, *(1,) * (len(shape) - t.ndim))).expand(shape)


# One state or window


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(
    ("batch", "times"), [((), ()), ((5,), ()), ((5,), (5,)), ((2, 3), ()), ((2, 3), (2, 1))]
)
def test_score_net(batch: tuple[int, ...], times: tuple[int, ...], context: int):
    """The MLP sees the state, the embedded time and the context, in this order."""
    network = ScoreNet(3, context, embedding=7, hidden_features=(8, 8), activation=nn.SiLU)
    x, t = torch.randn(*batch, 3), torch.rand(times)
    c = torch.randn(context) if context else None  # one context for all states

    inputs = [x, oracles.time_embedding(dict(network.state_dict()), expand(t, *batch))]
    if c is not None:
        inputs.append(c.expand(*batch, context))
    literal = oracles.res_mlp(
        dict(network.state_dict()),
        torch.cat(inputs, dim=-1),
        (3 + 7 + context, 8, 8, 3),
        F.silu,
        "network.",
    )
    close(network(x, t, c), literal)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("spatial", "size"), [(1, (8,)), (2, (4, 8)), (3, (2, 4, 4))])
@pytest.mark.parametrize(("batch", "times"), [((1,), ()), ((3,), (3,)), ((3,), ()), ((2, 3), ())])
def test_score_unet(
    batch: tuple[int, ...],
    times: tuple[int, ...],
    spatial: int,
    size: tuple[int, ...],
    context: int,
):
    """Context channels are appended to those of the state."""
    network = ScoreUNet(
        2,
        context,
        embedding=6,
        hidden_channels=(3, 4),
        hidden_blocks=(1, 1),
        activation=nn.SiLU,
        spatial=spatial,
        padding_mode="circular",
    )
    x, t = torch.randn(*batch, 2, *size), torch.rand(times)
    c = torch.randn(context, *size) if context else None  # such as the forcing

    y = x if c is None else torch.cat((x, c.expand(*batch, context, *size)), dim=len(batch))
    y = y.flatten(0, len(batch) - 1)
    weights = dict(network.state_dict())
    modulation = oracles.time_embedding(weights, t.expand(len(y)))
    literal = oracles.unet(weights, y, modulation, (1, 1), F.silu, name="network.")
    close(network(x, t, c), literal.reshape(x.shape))


def test_wrapper():
    """Time is a dimension of the convolutions, behind the channels."""
    score = ScoreUNet(
        2,
        1,
        embedding=6,
        hidden_channels=(3, 4),
        hidden_blocks=(1, 1),
        spatial=2,
        padding_mode="circular",
    )
    network = MCScoreWrapper(score)
    x, t, c = torch.randn(3, 6, 2, 4), torch.tensor(0.3), torch.randn(1, 6, 4)  # (B, L, C, W)
    result = network(x, t, c)

    assert result.shape == x.shape
    close(result.movedim(2, 1), score(x.movedim(2, 1), t, c))
    assert {name.split(".")[0] for name in network.state_dict()} == {"score"}


# Trajectories


def mlp(order: int, features: int = 3, **kwargs) -> MCScoreNet:
    return MCScoreNet(features, order=order, hidden_features=[16], **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("k", "length"), [(1, 3), (1, 4), (2, 5), (2, 9), (2, 33), (3, 7), (4, 12)]
)
def test_centre(k: int, length: int, batch: int, backend: str):
    """Windows are unfolded and folded as in the reference package."""
    network = mlp(k, context=2)
    x, t, c = torch.randn(batch, length, 3), torch.tensor(0.4), torch.randn(2)

    with ops.backend(backend):
        result = network(x, t, c)
    close(result, oracles.centre(lambda w: network.kernel(w, t, c), x, k))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("composition", ["centre", "junction"])
@pytest.mark.parametrize(("spatial", "size"), [(1, (8,)), (2, (4, 4))])
def test_fields(spatial: int, size: tuple[int, ...], composition: str, backend: str):
    """States with channels and space; a window's channels are its states', one after another."""
    aware = composition == "junction"
    network = MCScoreNet(
        2,
        1,
        order=1,
        composition=composition,
        length_aware=aware,
        embedding=4,
        spatial=spatial,
        hidden_channels=(3, 4),
        hidden_blocks=(1, 1),
        padding_mode="circular",
    )
    x, t, c = torch.randn(2, 6, 2, *size), torch.tensor(0.4), torch.randn(1, *size)

    def kernel(windows: Tensor) -> Tensor:
        return network.kernel(windows, t, c)

    def score(states: Tensor) -> Tensor:
        n = states.shape[1]
        padded = torch.cat((states, torch.zeros(2, 3 - n, 2, *size)), dim=1).flatten(1, 2)
        mask = torch.cat((torch.ones(n, *size), torch.zeros(3 - n, *size)))
        eps = network.kernel(padded, t, torch.cat((c, mask)))
        return eps.unflatten(1, (3, 2))[:, :n]

    with ops.backend(backend):
        result = network(x, t, c)
    close(result, oracles.junction(score, x, 3, 1) if aware else oracles.centre(kernel, x, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(
    ("k", "stride", "length"),
    [(1, 1, 5), (1, 2, 8), (2, 2, 9), (2, 3, 12), (2, 4, 14), (4, 4, 30), (2, 2, 3), (2, 2, 1)],
)
def test_junction(k: int, stride: int, length: int, context: int, backend: str):
    """Windows minus overlaps; states beyond a window's length are zero and out of the mask."""
    w = 2 * k + 1
    network = mlp(k, context=context, composition=Junction(w, stride), length_aware=True)
    x, t = torch.randn(3, length, 3), torch.tensor(0.4)
    c = torch.randn(context) if context else None

    def score(states: Tensor) -> Tensor:
        n = states.shape[1]
        padded = torch.zeros(3, w, 3)
        padded[:, :n] = states
        mask = torch.tensor([1.0] * n + [0.0] * (w - n))
        features = mask if c is None else torch.cat((c, mask))
        return network.kernel(padded.flatten(1), t, features).unflatten(1, (w, 3))[:, :n]

    with ops.backend(backend):
        result = network(x, t, c)
    close(result, oracles.junction(score, x, min(w, length), stride))


def test_junction_by_name():
    """ "junction" is windows of w states, a stride of k."""
    network = mlp(4, composition="junction", length_aware=True)
    x, t = torch.randn(1, 30, 3), torch.tensor(0.4)
    by_name = network(x, t)
    network.composition = Junction(9, 4)
    assert torch.equal(by_name, network(x, t))
    network.composition = Junction(9, 4).plan(30)
    assert torch.equal(by_name, network(x, t))


def test_centre_of_a_length_aware_network():
    network = mlp(2, length_aware=True)
    x, t = torch.randn(2, 9, 3), torch.tensor(0.4)
    mask = torch.ones(5)
    close(network(x, t), oracles.centre(lambda w: network.kernel(w, t, mask), x, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("composition", [Centre(2), Junction(5, 2)], ids=str)
def test_gradient(composition: Centre | Junction, backend: str):
    network = mlp(2, composition=composition, length_aware=True)
    x = torch.randn(2, 9, 3, requires_grad=True)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor(0.4)), (x,))


@pytest.mark.parametrize("size", [None, 1, 7, 64, 1000])
@pytest.mark.parametrize("batch", [1, 5])
def test_window_batch(batch: int, size: int | None):
    """The network is called with at most so many windows, but with 32 rows at least: fewer would
    change the last bits of a matrix product."""
    network = mlp(2, composition="junction", length_aware=True)
    rows = []
    network.kernel.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    sample(VPSDE(network, (65, 3)), (batch,), steps=1, window_batch=size, backend="reference")

    windows = len(network.plan(65)) * batch
    assert sum(rows) == windows
    assert min(rows) >= min(32, windows)
    assert max(rows) <= max(size or windows, 2 * 32 + batch)


@pytest.mark.parametrize("size", [1, 3, 4, 16, 1000])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("guided", [False, True])
def test_window_batch_of_fields(batch: int, size: int, guided: bool):
    """It is a bound, also where there are more samples than that, and no sample depends on it."""
    network = MCScoreNet(1, order=1, spatial=1, hidden_channels=[4], hidden_blocks=[1], embedding=8)
    sde = VPSDE(network.requires_grad_(False), (7, 1, 8))
    if guided:
        sde = VPSDE(GaussianScore(torch.zeros(7, 1, 4), lambda x: x[..., ::2], 0.3, sde), sde.shape)
    options = {"steps": 2, "seed": 1}
    expected = sample(sde, (batch,), **options)
    rows = []
    network.kernel.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    torch.testing.assert_close(
        sample(sde, (batch,), window_batch=size, **options), expected, rtol=1e-3, atol=1e-4
    )
    assert max(rows) <= size
    assert f"at most {size} windows" in str(explain(sde, (batch,), window_batch=size))


def test_state_dict_of_vectors():
    network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256, 256], activation=nn.SiLU)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == {
        "kernel.embedding.freqs": (16,),
        "kernel.embedding.0.weight": (256, 32),
        "kernel.embedding.0.bias": (256,),
        "kernel.embedding.2.weight": (32, 256),
        "kernel.embedding.2.bias": (32,),
        "kernel.network.0.weight": (256, 15 + 32),
        "kernel.network.0.bias": (256,),
        "kernel.network.1.1.weight": (256, 256),
        "kernel.network.1.1.bias": (256,),
        "kernel.network.1.3.weight": (256, 256),
        "kernel.network.1.3.bias": (256,),
        "kernel.network.2.1.weight": (256, 256),
        "kernel.network.2.1.bias": (256,),
        "kernel.network.2.3.weight": (256, 256),
        "kernel.network.2.3.bias": (256,),
        "kernel.network.3.weight": (15, 256),
        "kernel.network.3.bias": (15,),
        "kernel.network.4.1.weight": (15, 15),
        "kernel.network.4.1.bias": (15,),
        "kernel.network.4.3.weight": (15, 15),
        "kernel.network.4.3.bias": (15,),
    }


def test_state_dict_of_fields():
    network = MCScoreNet(
        2, 1, order=2, embedding=8, spatial=2, hidden_channels=(4, 6), hidden_blocks=(1, 1)
    )
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["kernel.embedding.2.weight"] == (8, 256)
    assert shapes["kernel.network.heads.0.weight"] == (4, 2 * 5 + 1, 3, 3)
    assert shapes["kernel.network.heads.1.0.weight"] == (6, 4, 3, 3)
    assert shapes["kernel.network.tails.0.2.weight"] == (4, 6, 3, 3)
    assert shapes["kernel.network.tails.1.weight"] == (2 * 5, 4, 3, 3)
    assert shapes["kernel.network.descent.0.0.project.0.weight"] == (4, 8)
    assert shapes["kernel.network.ascent.0.0.residue.3.bias"] == (6,)
    assert len(shapes) == 5 + 4 + 4 + 4 * 6


def test_strict_state_dict():
    """Loading is strict, whatever the composition: it is not part of the state."""
    network, other = mlp(2), mlp(2)
    other.composition = Centre(2)
    other.load_state_dict(network.state_dict())
    x, t = torch.randn(1, 9, 3), torch.tensor(0.4)
    assert torch.equal(network(x, t), other(x, t))


# Refusals


@pytest.mark.parametrize("length", [1, 4])
def test_trajectory_shorter_than_a_window(length: int):
    with pytest.raises(ValueError, match=rf"at least 2k \+ 1 = 5 states .* got {length}"):
        mlp(2)(torch.randn(1, length, 3), torch.tensor(0.5))


def test_junction_needs_a_length_aware_network():
    message = r"windows of \[3, 5\] states, the network scores windows of 5; .*length_aware=True"
    with pytest.raises(ValueError, match=message):
        mlp(2, composition="junction")(torch.randn(1, 9, 3), torch.tensor(0.5))


def test_lengths_that_a_network_was_trained_for():
    network = mlp(2, composition="junction", length_aware=True, lengths=(5, 3))
    network.plan(9)
    message = r"windows of \[4\] states, the network scores windows of \[3, 5\]"
    with pytest.raises(ValueError, match=message):
        network.plan(8)
    with pytest.raises(ValueError, match="lengths are only for a length_aware network"):
        mlp(2, lengths=(5,))
    with pytest.raises(ValueError, match=r"lengths must be between 1 and 5, got \(3, 6\)"):
        mlp(2, length_aware=True, lengths=(3, 6))


@pytest.mark.parametrize("composition", [Centre(3), Junction(7, 3)], ids=str)
def test_windows_longer_than_the_network(composition: Centre | Junction):
    with pytest.raises(ValueError, match="windows have 7 states, the network scores at most 5"):
        mlp(2, composition=composition, length_aware=True).plan(9)


def test_plan_of_another_length():
    network = mlp(2, composition=Centre(2).plan(9))
    network.plan(9)
    with pytest.raises(ValueError, match="plan is for 9 states, the trajectory has 10"):
        network.plan(10)


def test_unknown_composition():
    with pytest.raises(ValueError, match=r"composition must be 'centre', .* got 'center'"):
        mlp(2, composition="center").plan(9)


@pytest.mark.parametrize("order", [0, -1])
def test_bad_order(order: int):
    with pytest.raises(ValueError, match=f"order must be at least 1, got {order}"):
        mlp(order)


# Its vector-Jacobian product


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("composition", [Centre(2), Junction(5, 2)], ids=str)
@pytest.mark.parametrize("size", [None, 40])
def test_linearise(composition: Centre | Junction, backend: str, size: int | None):
    """The estimate and its product are those of autograd, in chunks of windows or not."""
    network = mlp(2, composition=composition, length_aware=True)
    x, v, t = torch.randn(9, 17, 3), torch.randn(9, 17, 3), torch.tensor(0.4)
    leaf = x.clone().requires_grad_()
    with ops.backend("reference"):
        expected = network(leaf, t)
        (product,) = torch.autograd.grad(expected, leaf, v)

    with ops.backend(backend), torch.no_grad(), score.sampling(size):
        eps, vjp = network.linearise(x, t)
        close(eps, expected.detach())
        for _ in range(2):  # as often as one likes
            close(vjp(v), product)
    assert not eps.requires_grad
    assert not vjp(v).requires_grad


@pytest.mark.parametrize("size", [None, 4])
def test_linearise_fields(size: int | None):
    network = MCScoreNet(
        2, order=1, context=1, spatial=1, hidden_channels=(8,), hidden_blocks=(1,), embedding=8
    ).double()
    x, v = torch.randn(2, 2, 40, 2, 8, dtype=torch.float64)
    t, c = torch.tensor(0.4, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    expected = network(leaf, t, c)
    (product,) = torch.autograd.grad(expected, leaf, v)
    with torch.no_grad(), score.sampling(size):
        eps, vjp = network.linearise(x, t, c)
    close(eps, expected.detach())
    close(vjp(v), product)


def test_compiled_without_a_break():
    """torch.compile and torch.export trace the whole of a step of the sampler."""
    network = mlp(2)
    x, t = torch.randn(2, 9, 3), torch.tensor(0.4)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            x = ops.predictor(x, self.network(x, t), 0.9, -0.1)
            return ops.langevin(x, self.network(x, t), 0.5, 0.3, seed=1, step=2)

    step = Step()
    with torch.no_grad():
        expected = step(x, t)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, t), expected)
        exported = torch.export.export(step, (x, t))
        torch.testing.assert_close(exported.module()(x, t), expected)


@pytest.mark.filterwarnings("ignore:(?s).*Dynamo:UserWarning")  # of where it divides it
@pytest.mark.parametrize("A", [lambda x: x[:, ::4, 0], lambda x: x.square().sum(-1)])
def test_guidance_compiles(A: Callable[[Tensor], Tensor]):
    """In parts: its levels are numbers, and its network chooses what serves it."""
    guidance = GaussianScore(torch.zeros(1), A, 0.1, VPSDE(mlp(2), (9, 3)))
    x, t = torch.randn(2, 9, 3), torch.tensor(0.4)
    with torch.no_grad():
        compiled = torch.compile(guidance, backend="aot_eager")
        torch.testing.assert_close(compiled(x, t), guidance(x, t))
