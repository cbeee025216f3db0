"""The oracle itself: the operators in pure PyTorch against loops, known answers and moments."""

import math

import pytest
import torch
from torch import Tensor

from sda_fast import Centre, Junction, Plan, reference

stats = pytest.importorskip("scipy.stats")

PLANS = [Centre(1).plan(3), Centre(2).plan(9), Junction(5, 2).plan(12), Junction(9, 4).plan(30)]
SPACES = [(), (2,), (2, 3)]


def name(plan: Plan) -> str:
    return f"{len(plan)}x{plan.window}of{plan.states}"


def close(x: Tensor, y: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# Windows


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_gather(plan: Plan, batch: int, space: tuple[int, ...]):
    x = torch.randn(batch, plan.states, 2, *space, dtype=torch.float64)
    for weight in (plan.weight, plan.mask):
        windows = reference.gather(x, plan.start, weight)
        assert windows.shape == (batch, len(plan), plan.window * 2, *space)
        for n, start in enumerate(plan.start.tolist()):
            for j in range(plan.window):
                part = windows[:, n, 2 * j : 2 * j + 2]
                scale = int(weight[n, j])
                assert torch.equal(part, scale * x[:, start + j] if scale else 0 * part)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_compose(plan: Plan, batch: int, space: tuple[int, ...]):
    shape = (batch, len(plan), plan.window * 2, *space)
    windows = torch.randn(shape, dtype=torch.float64)
    expected = torch.zeros(batch, plan.states, 2, *space, dtype=torch.float64)
    for n, start in enumerate(plan.start.tolist()):
        for j in range(plan.window):
            if plan.weight[n, j]:
                expected[:, start + j] += plan.weight[n, j] * windows[:, n, 2 * j : 2 * j + 2]
    close(reference.compose(windows, plan.start, plan.weight, plan.states), expected)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_adjoint(plan: Plan):
    """<compose(w), x> = <w, gather(x)>, and autograd knows it."""
    x = torch.randn(2, plan.states, 3, dtype=torch.float64, requires_grad=True)
    windows = torch.randn(2, len(plan), plan.window * 3, dtype=torch.float64, requires_grad=True)
    gathered = reference.gather(x, plan.start, plan.weight)
    composed = reference.compose(windows, plan.start, plan.weight, plan.states)

    close((composed * x).sum(), (windows * gathered).sum())
    close(torch.autograd.grad((gathered * windows.detach()).sum(), x)[0], composed)
    close(torch.autograd.grad((composed * x.detach()).sum(), windows)[0], gathered)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_compose_of_gather_is_the_identity(plan: Plan):
    """Every state counts once, and is what it was."""
    x = torch.randn(2, plan.states, 3, dtype=torch.float64)
    windows = reference.gather(x, plan.start, plan.mask)
    close(reference.compose(windows, plan.start, plan.weight, plan.states), x)


# Steps


@pytest.mark.parametrize("shape", [(1, 3), (4, 5, 2), (2, 3, 2, 2)])
def test_predictor(shape: tuple[int, ...]):
    x, eps = torch.randn(2, *shape, dtype=torch.float64)
    expected = torch.tensor(
        [
            1.3 * a - 0.4 * b
            for a, b in zip(x.flatten().tolist(), eps.flatten().tolist(), strict=True)
        ],
        dtype=torch.float64,
    ).reshape(shape)
    close(reference.predictor(x, eps, 1.3, -0.4), expected)
    assert reference.predictor_(x, eps, 1.3, -0.4) is None
    close(x, expected)


@pytest.mark.parametrize("shape", [(1, 3), (4, 5, 2), (2, 3, 2, 2)])
def test_langevin(shape: tuple[int, ...]):
    """One delta for each sample, from the mean over all its elements."""
    x, eps = torch.randn(2, *shape, dtype=torch.float64)
    stream = {"seed": 7, "step": 3, "correction": 2, "first_sample": 5}
    z = torch.empty_like(x)
    reference.philox_normal_(z, **stream)

    expected = torch.empty_like(x)
    for b in range(shape[0]):
        delta = 0.3 / (eps[b].square().sum() / eps[b].numel())
        expected[b] = x[b] - 0.8 * (delta * eps[b] + torch.sqrt(2 * delta) * z[b])

    close(reference.langevin(x, eps, 0.8, 0.3, **stream), expected)
    assert reference.langevin_(x, eps, 0.8, 0.3, **stream) is None
    close(x, expected)


def test_langevin_without_an_estimate():
    """A sample whose estimate is zero stays, the others move."""
    x, eps = torch.randn(2, 3, 4)
    eps[1] = 0
    y = reference.langevin(x, eps, 0.8, 0.3, seed=0, step=1)
    assert torch.equal(y[1], x[1])
    assert (y[0] != x[0]).all()


def test_langevin_gradient():
    x, eps = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, eps: reference.langevin(x, eps, 0.8, 0.3, seed=0, step=1), (x, eps)
    )


# Random numbers

# The known answers of the authors' library, Random123: counter, key and output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]):
    result = reference.philox(tuple(map(torch.tensor, counter)), key)
    assert tuple(map(int, result)) == words


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **stream: int) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    reference.philox_normal_(out, **{"seed": 1, "step": 2} | stream)
    return out


def test_normal_is_box_muller():
    """Element e of sample s is word e mod 4 at the counter (e / 4, s, step, correction)."""
    seed, step, correction, first = 2**40 + 3, 11, 5, 100
    z = noise((2, 7), seed=seed, step=step, correction=correction, first_sample=first)
    for s in range(2):
        for e in range(7):
            counter = (e // 4, first + s, step, correction)
            words = reference.philox(
                tuple(map(torch.tensor, counter)), (seed % 2**32, seed // 2**32)
            )
            pair = [int(w) for w in (words[:2] if e % 4 < 2 else words[2:])]
            radius = math.sqrt(-2 * math.log((pair[0] + 0.5) / 2**32))
            angle = 2 * math.pi * pair[1] / 2**32
            expected = radius * (math.cos(angle) if e % 2 == 0 else math.sin(angle))
            assert float(z[s, e]) == pytest.approx(expected, abs=1e-12)


def test_normal_law():
    """4 x 2^14 numbers: moments to 5 standard errors, their law, no correlation."""
    z = noise((4, 2**14))
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z**3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3

    for other in (noise((4, 2**14), step=3), noise((4, 2**14), correction=1), z.roll(1, 1)):
        assert abs(float((z * other).mean())) < 5 / math.sqrt(n)
    correlation = z @ z.T / z.shape[1] - torch.eye(4)
    assert (correlation.abs() < 5 * math.sqrt(2 / z.shape[1])).all()


def test_normal_is_a_function_of_its_place():
    """Whatever the batch, the shape or the type."""
    z = noise((8, 6, 5))
    assert torch.equal(noise((3, 6, 5)), z[:3])
    assert torch.equal(noise((2, 6, 5), first_sample=4), z[4:6])
    assert torch.equal(noise((8, 30)).reshape(8, 6, 5), z)
    assert torch.equal(noise((8, 7)), z.flatten(1)[:, :7])
    close(noise((8, 6, 5), torch.float32).double(), z, 1e-6)


@pytest.mark.parametrize(
    "stream", [{"seed": 2}, {"seed": 2**32 + 1}, {"step": 3}, {"correction": 1}]
)
def test_streams_differ(stream: dict[str, int]):
    """Every part of the place matters, the key's high word too."""
    assert (noise((2, 6)) != noise((2, 6), **stream)).all()


def test_strided_output():
    out = torch.zeros(3, 10, 2)[..., 0]
    reference.philox_normal_(out, seed=1, step=2)
    close(out.double(), noise((3, 10)), 1e-6)
    assert noise((0, 5)).shape == (0, 5)
