"""Likelihoods against scipy, and against samples where nothing has their closed form."""

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor

from sda_fast.likelihood import (
    Censored,
    Gaussian,
    Huber,
    Likelihood,
    LogNormal,
    Poisson,
    StudentT,
)

special = pytest.importorskip("scipy.special")
stats = pytest.importorskip("scipy.stats")


def A(x: Tensor) -> Tensor:
    return x[:, :3]


def rate(x: Tensor) -> Tensor:
    return x[:, :3].exp()


def shifted_poisson(count: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return count * np.log(rate) - rate - special.gammaln(count + 1)


Y = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 3.0, 7.0], dtype=torch.float64)
X = torch.tensor([[0.1, 0.2, 0.3, 9.0], [-1.0, 0.5, 1.5, 9.0]], dtype=torch.float64)

# what each is for a prediction p and a variance v, by scipy
CASES: dict[str, tuple[Likelihood, Callable[[np.ndarray, float], np.ndarray]]] = {
    "gaussian": (
        Gaussian(Y, A, 0.5),
        lambda p, v: stats.norm.logpdf(Y, p, np.sqrt(0.25 + v)),
    ),
    "student-t": (
        StudentT(Y, A, 0.5, df=4),
        lambda p, v: stats.t.logpdf(Y, 4, p, np.sqrt(0.25 + v)),
    ),
    "poisson": (
        Poisson(COUNTS, rate),
        lambda p, v: (
            (COUNTS.numpy() + v) * np.log(np.exp(p) + v)
            - (np.exp(p) + v)
            - special.gammaln(COUNTS.numpy() + v + 1)
            if v > 0
            else stats.poisson.logpmf(COUNTS, np.exp(p))
        ),
    ),
    "log-normal": (
        LogNormal(Y.abs(), rate, 0.4),
        lambda p, v: stats.lognorm.logpdf(
            Y.abs(), np.sqrt(0.16 + v / np.exp(2 * p)), scale=np.exp(p)
        ),
    ),
    "censored": (
        Censored(Y.clamp(-1, 1), A, 0.5, -1, 1),
        lambda p, v: np.stack(
            [
                stats.norm.logpdf(0.3, p[:, 0], np.sqrt(0.25 + v)),
                stats.norm.logcdf(-1, p[:, 1], np.sqrt(0.25 + v)),
                stats.norm.logsf(1, p[:, 2], np.sqrt(0.25 + v)),
            ],
            axis=1,
        ),
    ),
}


@pytest.mark.parametrize("variance", [0.0, 0.7])
@pytest.mark.parametrize("name", list(CASES))
def test_log_density(name: str, variance: float):
    module, expected = CASES[name]
    expected = torch.as_tensor(expected(X[:, :3].numpy(), variance)).sum(dim=1)
    torch.testing.assert_close(module(X, variance), expected)


@pytest.mark.parametrize("name", [*CASES, "huber"])
def test_gradient(name: str):
    module = Huber(Y, A, 0.5) if name == "huber" else CASES[name][0]
    for variance in (0.0,) if name == "log-normal" else (0.0, 0.7):
        x = X.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, v=variance: module(x, v), (x,))


def test_huber():
    """Gaussian within the threshold, linear beyond, and as smooth as that is between."""
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    density = Huber(torch.zeros(1), lambda x: x, 1.0, delta=1.5)(z)
    inside = z[:, 0].abs() <= 1.5
    torch.testing.assert_close(density[inside], -(z[inside, 0] ** 2) / 2)
    torch.testing.assert_close(density[~inside], -1.5 * (z[~inside, 0].abs() - 0.75))


def test_rate_that_is_not_known():
    """The residual of a count is weighed by its whole variance, so its pull is bounded."""
    x = torch.tensor([[0.01], [2.0], [300.0]], dtype=torch.float64, requires_grad=True)
    value = Poisson(torch.tensor([5.0]), lambda x: x)(x, 1.5)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, (5 - x) / (x + 1.5))


def test_uncertain_logarithm():
    """Its variance is that of the logarithm, to first order, and no force of its own."""
    x = torch.tensor([[1e-4], [2.0], [300.0]], dtype=torch.float64, requires_grad=True)
    value = LogNormal(torch.tensor([5.0]), lambda x: x, 0.4)(x, 1.5)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, torch.log(5 / x) / (0.16 + 1.5 / x**2) / x)


@pytest.mark.parametrize("name", list(CASES))
def test_missing_observations(name: str):
    """They do not count, and their gradient is zero, whatever is predicted."""
    module, _ = CASES[name]
    kept = module.y.clone()
    module.y[1] = torch.nan
    try:
        x = X.clone()
        x[0, 1], x[1, 1] = 80, -80
        x.requires_grad_()
        value = module(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all()
        assert (gradient[:, 1] == 0).all()
        assert (gradient[:, [0, 2]] != 0).all()
    finally:
        module.y.copy_(kept)


OF: dict[str, Callable[[Tensor], Likelihood]] = {
    "gaussian": lambda y: Gaussian(y, A, 0.5),
    "student-t": lambda y: StudentT(y, A, 0.5),
    "huber": lambda y: Huber(y, A, 0.5),
    "poisson": lambda y: Poisson(y, rate),
    "log-normal": lambda y: LogNormal(y, rate, 0.4),
    "censored": lambda y: Censored(y, A, 0.5, 0, 8),
    "sum": lambda y: Gaussian(y, A, 0.5) + Poisson(COUNTS, rate),
}


@pytest.mark.parametrize("name", list(OF))
def test_observations_of_each_trajectory(name: str):
    y = torch.tensor([[1.0, math.nan, 7.0], [2.0, 0.5, 3.0]], dtype=torch.float64)
    alone = [OF[name](y[i])(X[i : i + 1], 0.2) for i in range(2)]
    torch.testing.assert_close(OF[name](y)(X, 0.2), torch.cat(alone))
    assert torch.equal(OF[name](y[:1])(X, 0.2), OF[name](y[0])(X, 0.2))
    says = r"y has shape \(2, 3\), but A\(x\) has shape \(4, 3\), not \(4, \*observation\), where y"
    with pytest.raises(ValueError, match=says):
        OF[name](y)(X.repeat(2, 1))


def test_parameter_of_each_trajectory():
    y, std = torch.randn(2, 3), torch.rand(2, 1) + 0.1
    alone = [Gaussian(y[i], A, std[i])(X[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(Gaussian(y, A, std)(X), torch.cat(alone))


def test_one_number_of_each_trajectory():
    """An observation without dimensions, the same for all trajectories or not."""
    y = torch.tensor([0.3, 0.7], dtype=torch.float64)
    value = Gaussian(y, lambda x: x.mean(dim=1), 0.5)(X)
    torch.testing.assert_close(value, torch.tensor(stats.norm.logpdf(y, X.mean(dim=1), 0.5)))
    value = Gaussian(y[0], lambda x: x.mean(dim=1), 0.5)(X)
    torch.testing.assert_close(value, torch.tensor(stats.norm.logpdf(0.3, X.mean(dim=1), 0.5)))


def test_outliers_pull_less():
    """The gradient of a heavy tail falls with the distance, Huber's stays, the Gaussian's grows."""
    x = torch.tensor([[3.0], [30.0]], requires_grad=True)
    y = torch.zeros(1)
    pull = {}
    for make in (Gaussian, Huber, StudentT):
        (gradient,) = torch.autograd.grad(make(y, lambda x: x, 1.0)(x).sum(), x)
        pull[make] = gradient[:, 0].abs().tolist()
    assert pull[Gaussian][1] == pytest.approx(10 * pull[Gaussian][0])
    assert pull[Huber][1] == pytest.approx(pull[Huber][0])
    assert pull[StudentT][1] < pull[StudentT][0] / 4


TAIL = [0.0, 1e-30, 1e-3, 0.3, 1, 3, 5, 8, 10, 13, 20, 30, 50, 100, 300, 1e3, 1e4, 1e6, 1e10, 1e15]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["low", "high"])
def test_far_from_the_end(end: str, dtype: torch.dtype):
    """The pull of a reading at an end, from where it is all but sure to where it is absurd."""
    low, high = (0.0, math.inf) if end == "low" else (-math.inf, 0.0)
    z = torch.tensor([-z for z in TAIL] + TAIL, dtype=dtype)
    x = ((-z if end == "low" else z) * 0.5)[:, None].requires_grad_()  # in units of std
    value = Censored(torch.zeros(1, dtype=dtype), lambda x: x, 0.5, low, high)(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)

    z = z.double().numpy()
    with np.errstate(over="ignore"):
        pull = math.sqrt(2 / math.pi) / special.erfcx(-z / math.sqrt(2)) / 0.5
    narrow = dtype == torch.float32
    exact = {"rtol": 1e-5 if narrow else 1e-12, "atol": 1e-30 if narrow else 0.0}
    torch.testing.assert_close(value.double(), torch.tensor(special.log_ndtr(z)), **exact)
    pull = torch.tensor(-pull if end == "low" else pull)
    torch.testing.assert_close(gradient[:, 0].double(), pull, **exact)


@pytest.mark.parametrize("end", [0.1, 0.7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_reading_at_an_end_of_another_type(dtype: torch.dtype, end: float):
    """One that its type rounds to less than the end is at it, whatever is predicted."""
    y = torch.tensor([end], dtype=dtype)
    for of in (torch.float32, torch.float64):
        x = torch.tensor([[0.5]], dtype=of)
        value = Censored(y, lambda x: x, 0.2, 0.0, end)(x)
        expected = stats.norm.logsf((float(y) - 0.5) / 0.2)
        assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variance", [0.0, 0.7])
def test_curvature_of_a_censored_reading(variance: float):
    module = CASES["censored"][0]
    x = X.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: module(x, variance), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CASES, "huber"])
def test_half_types(name: str, dtype: torch.dtype):
    """What is predicted in a half type is weighed in float32."""
    module = Huber(Y, A, 0.5) if name == "huber" else CASES[name][0]
    x = X.to(dtype).requires_grad_()
    value = module(x, 0.7)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    wide = x.detach().float().requires_grad_()
    # the operator itself is evaluated in the half type
    tolerance = 1e-5 if module.A is A else 0.05
    torch.testing.assert_close(value, module(wide, 0.7), rtol=tolerance, atol=tolerance)
    (expected,) = torch.autograd.grad(module(wide, 0.7).sum(), wide)
    torch.testing.assert_close(gradient, expected.to(dtype), rtol=0.05, atol=0.05)


def test_instruments_are_added():
    both = CASES["gaussian"][0] + CASES["poisson"][0]
    three = both + CASES["student-t"][0]
    parts = [CASES[name][0](X, 0.2) for name in ("gaussian", "poisson", "student-t")]
    torch.testing.assert_close(both(X, 0.2), parts[0] + parts[1])
    torch.testing.assert_close(three(X, 0.2), sum(parts))
    assert isinstance(three, Likelihood)
    assert len(three.state_dict()) == 5
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = both + 3


def test_many_instruments_are_added():
    """As many as Python has no calls within calls for."""
    one = Gaussian(torch.zeros(2), lambda x: x, 1.0)
    x = torch.randn(3, 2)
    for many in (lambda a, b: a + b, lambda a, b: b + a):
        total = reduce(many, [one] * 400)
        torch.testing.assert_close(total(x), 400 * one(x), rtol=1e-4, atol=0)

    total = one + one
    total.register_forward_hook(lambda *_: torch.zeros(3))
    assert torch.equal((total + one)(x), one(x))  # it is called


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaussian(torch.tensor([math.inf]), A, 1.0), "y must be finite, or NaN"),
        (lambda: Gaussian(Y, A, 0.0), "std must be positive, got 0.0"),
        (lambda: Gaussian(Y, A, Y.abs() - 0.3), r"std must be positive, .* at index \(0,\)"),
        (lambda: StudentT(Y, A, -1.0), "scale must be positive, got -1.0"),
        (lambda: StudentT(Y, A, 1.0, df=0), "df must be positive, got 0"),
        (lambda: StudentT(Y, A, 1.0, df=math.nan), "df must be positive, got nan"),
        (lambda: StudentT(Y, A, 1.0, df=math.inf), "df must be at most 1e20 .* got inf"),
        (lambda: Huber(Y, A, 1.0, delta=-1), "delta must be positive, got -1"),
        (lambda: Poisson(Y, A), "y must be counts, zero or positive, got -"),
        (lambda: LogNormal(Y, A, 1.0), "y must be positive"),
        (lambda: Censored(Y, A, 1.0, 1, -1), "low must be less than high, got 1 and -1"),
        (lambda: Censored(Y, A, 1.0, -1, 1), "y must lie from low = -1 to high = 1"),
        (
            lambda: Gaussian(Y, lambda x: x, 1.0)(X),
            r"y has shape \(3,\), but A\(x\) has shape \(2, 4\), not \(2, \*observation\), where y",
        ),
    ],
)
def test_errors(make: Callable[[], object], says: str):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Gaussian, "std"),
        (StudentT, "scale"),
        (Huber, "scale"),
        (LogNormal, "std"),
        (Censored, "std"),
    ],
)
def test_shape_of_a_parameter(make: Callable[..., Likelihood], name: str):
    """One that y would be broadcast to would count each observation more than once."""
    y, each = torch.rand(5, 1) + 0.1, torch.rand(5) + 0.1
    says = rf"{name} must be a number or broadcast to y, with shape \(5, 1\), got shape"
    for wrong in (each, each[None, :, None], each[:4, None]):
        with pytest.raises(ValueError, match=says):
            make(y, A, wrong)
    for right in (0.5, each[:1], each[:, None]):
        assert make(y, lambda x: x, right)(torch.rand(2, 5, 1)).shape == (2,)


@pytest.mark.parametrize("df", [0.1, 3, 199, 199.99, 200.01, 1e4, 1e8, 1e12, 1e16, 1e20])
def test_many_degrees_of_freedom(df: float):
    """The constant is exact, to where the law is the Gaussian's."""
    module = StudentT(Y, A, 0.5, df)
    gaussian = Gaussian(Y, A, 0.5)(X)
    if df <= 1e4:  # scipy's constant cancels too
        expected = torch.tensor(stats.t.logpdf(Y, df, X[:, :3], 0.5).sum(axis=1))
        torch.testing.assert_close(module(X), expected, rtol=1e-10, atol=0)
    else:
        torch.testing.assert_close(module(X), gaussian, rtol=1e3 / df + 1e-13, atol=0)
    narrow = StudentT(Y.float(), A, 0.5, df)(X.float())
    torch.testing.assert_close(narrow.double(), module(X), rtol=1e-5, atol=0)


def test_numbers_are_not_rounded():
    """Beside observations in float64 they are of float64; a number that stays one is as given."""
    assert StudentT(Y, A, 0.1, df=0.1).df == 0.1
    assert Huber(Y, A, 0.1, delta=0.7).delta == 0.7
    assert Poisson(COUNTS, rate, floor=0.1).floor == 0.1
    assert LogNormal(COUNTS + 1, rate, 0.1, floor=0.3).floor == 0.3
    for y in (Y, Y.float(), Y.to(torch.bfloat16), COUNTS.long()):
        std = Gaussian(y, A, 0.1).std
        assert std.dtype == (torch.float64 if y.dtype == torch.float64 else torch.float32)
        assert std == torch.tensor(0.1, dtype=std.dtype)
    assert Gaussian(Y, A, 0.1)(X.float()).dtype == torch.float32
    exact = stats.norm.logpdf(Y, X[:, :3], 0.1).sum(axis=1)
    torch.testing.assert_close(Gaussian(Y, A, 0.1)(X), torch.tensor(exact), rtol=1e-13, atol=0)
