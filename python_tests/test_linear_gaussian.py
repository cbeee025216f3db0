"""What is known exactly: the laws of linear-Gaussian chains, and that the method attains them.

Two chains: AR(1), stationary, and the damped spring, whose prior is far from stationary.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import oracles
import pytest
import torch
from torch import Tensor, nn

import sda_fast
from sda_fast import VPSDE, Centre, DampedSpring, GaussianScore, Junction, MCScoreNet, ops
from sda_fast.evaluation import (
    Gaussian,
    GaussianEstimator,
    LinearGaussianChain,
    LinearObservation,
    WindowEstimator,
    kalman_filter,
    posterior,
    rts_smoother,
    stationary,
)
from sda_fast.schedule import coefficients

linalg = pytest.importorskip("scipy.linalg")


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ar1(a: float = 0.9) -> LinearGaussianChain:
    """x_i = a x_{i-1} + N(0, 1 - a^2): stationary, with variance 1."""
    return LinearGaussianChain.stationary(
        torch.tensor([[a]]), torch.zeros(1), torch.tensor([[1 - a**2]])
    )


def rotation() -> LinearGaussianChain:
    """A stationary chain of two coordinates, with a drift."""
    A = 0.95 * torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    return LinearGaussianChain.stationary(
        A, torch.tensor([0.1, -0.2]), torch.tensor([[0.2, 0.05], [0.05, 0.1]])
    )


def spring() -> LinearGaussianChain:
    return LinearGaussianChain.of(DampedSpring(dt=0.1))


def steady_spring() -> LinearGaussianChain:
    system = DampedSpring(dt=0.1)
    return LinearGaussianChain.stationary(system.A, system.b, system.Sigma_x)


CHAINS = {"ar1": ar1, "rotation": rotation, "spring": spring}
STATIONARY = {"ar1": ar1, "rotation": rotation, "spring": steady_spring}


def observe(chain: LinearGaussianChain, times: list[int], m: int = 1) -> LinearObservation:
    """Observes the first coordinate, or a mixture of all, with noise."""
    D = len(chain.b)
    H = torch.eye(D)[:1] if m == 1 else torch.randn(m, D)
    R = 0.3**2 * torch.eye(m) + 0.02 * torch.ones(m, m)
    return LinearObservation(times, H, R, 0.5 + torch.randn(len(times), m))


def close(x: Tensor, y: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def estimated(law: Gaussian, shape: tuple[int, ...], **kwargs) -> VPSDE:
    """A process whose estimator is exact for a law."""
    sde = VPSDE(nn.Identity(), shape, **kwargs)
    sde.eps = GaussianEstimator(law, sde)
    return sde


def composed(
    chain: LinearGaussianChain,
    length: int,
    rule: Centre | Junction | str,
    window: int,
    **kwargs,
) -> VPSDE:
    """A process whose estimator is composed of the exact ones of windows."""
    D = len(chain.b)
    sde = VPSDE(nn.Identity(), (length, D), **kwargs)
    network = MCScoreNet(
        D, order=window // 2, composition=rule, length_aware=True, hidden_features=[1]
    )
    network.kernel = WindowEstimator(chain.joint(window), window, sde)
    sde.eps = network
    return sde


# Filter, smoother and joint law


@pytest.mark.parametrize("name", list(CHAINS))
def test_joint(name: str):
    """The joint law is that of x_1 = m + e_1, x_i = A x_{i-1} + b + e_i, written as one system."""
    chain, L = CHAINS[name](), 5
    D = len(chain.b)
    system = torch.eye(L * D)
    noise = torch.zeros(L * D, L * D)
    mean = torch.zeros(L * D)
    for i in range(L):
        at = slice(i * D, (i + 1) * D)
        noise[at, at] = chain.Sigma_x if i else chain.first.covariance
        mean[at] = chain.b if i else chain.first.mean
        if i:
            system[at, slice((i - 1) * D, i * D)] = -chain.A
    inverse = torch.linalg.inv(system)

    joint = chain.joint(L)
    close(joint.mean, inverse @ mean)
    close(joint.covariance, inverse @ noise @ inverse.T)


def test_chain_of_a_system():
    """The chain is that of a simulation: moments of 2^15 trajectories, to 5 standard errors."""
    system, n, L = DampedSpring(dt=0.1), 2**15, 4
    x = system.trajectory(system.prior((n,)).double(), L).transpose(0, 1).flatten(1).double()
    mean, covariance = LinearGaussianChain.of(system).joint(L)

    variance = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    error = 5 * ((variance * variance[:, None] + covariance**2) / n).sqrt()
    assert ((x.T.cov() - covariance).abs() < error).all()


@pytest.mark.parametrize("name", list(CHAINS))
def test_samples_of_several_laws(name: str):
    """Each of them has its own: moments of 2^14 draws, to 5 standard errors."""
    laws, n = CHAINS[name]().laws(3), 2**14
    x = laws.sample((n,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (n, *laws.mean.shape)
    assert laws.sample().shape == laws.mean.shape
    for i, (mean, covariance) in enumerate(zip(*laws, strict=True)):
        assert_law(x[:, i], Gaussian(mean, covariance), allowance=0)

    alone = Gaussian(laws.mean[0], laws.covariance[0]).sample((2, 5))
    assert alone.shape == (2, 5, laws.mean.shape[-1])


@pytest.mark.parametrize("name", list(STATIONARY))
def test_stationary(name: str):
    chain = STATIONARY[name]()
    mean, covariance = stationary(chain.A, chain.b, chain.Sigma_x)
    after = chain.follow(chain.first)

    expected = linalg.solve_discrete_lyapunov(chain.A.numpy(), chain.Sigma_x.numpy())
    close(covariance, torch.from_numpy(expected))
    close(after.mean, mean)
    close(after.covariance, covariance)


@pytest.mark.parametrize("a", [1.0, -1.2])
def test_unstable_chains_have_no_stationary_law(a: float):
    with pytest.raises(ValueError, match=f"within the unit circle, got one of modulus {abs(a)}"):
        ar1(a)


def test_sizes_of_a_chain():
    with pytest.raises(ValueError, match="of one size"):
        replace(ar1(), b=torch.zeros(2))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("times", [[], [3], [0, 4, 8], [8, 2, 2, 5], list(range(9))], ids=str)
@pytest.mark.parametrize("name", list(CHAINS))
def test_smoother_is_conditioning(name: str, times: list[int], m: int):
    """Two algorithms, one law: states, and neighbours, whatever is observed, in any order."""
    chain, L = CHAINS[name](), 9
    D = len(chain.b)
    observation = observe(chain, times, m)
    mean, covariance = posterior(chain, observation, L)
    smoothed = rts_smoother(chain, observation, L)
    blocks = covariance.reshape(L, D, L, D)

    close(smoothed.mean, mean.reshape(L, D))
    for i in range(L):
        close(smoothed.covariance[i], blocks[i, :, i])
    for i in range(L - 1):
        close(smoothed.lag_one[i], blocks[i + 1, :, i])


@pytest.mark.parametrize("name", list(CHAINS))
def test_filter_is_conditioning_on_the_past(name: str):
    chain, L = CHAINS[name](), 6
    D = len(chain.b)
    observation = observe(chain, [0, 2, 3, 5])
    predicted, filtered = kalman_filter(chain, observation, L)

    for i in range(L):
        for laws, last in ((predicted, i - 1), (filtered, i)):
            past = [n for n, time in enumerate(observation.times) if time <= last]
            until = replace(
                observation, times=[observation.times[n] for n in past], y=observation.y[past]
            )
            mean, covariance = posterior(chain, until, L)
            at = slice(i * D, (i + 1) * D)
            close(laws.mean[i], mean[at])
            close(laws.covariance[i], covariance[at, at])


def test_nan_is_not_observed():
    """One element of a state, or a whole state, that is NaN is as if it were not asked for."""
    chain, L = rotation(), 6
    R = torch.tensor([[0.2, 0.05], [0.05, 0.1]])
    y = torch.randn(3, 2)
    y[0, 1] = y[2] = math.nan
    observation = LinearObservation([1, 4, 5], torch.eye(2), R, y)

    whole = LinearObservation([4], torch.eye(2), R, y[1:2])
    law = posterior(chain, whole, L).condition(torch.eye(2 * L)[2:3], R[:1, :1], y[0, :1])
    mean, covariance = posterior(chain, observation, L)
    close(mean, law.mean)
    close(covariance, law.covariance)
    close(rts_smoother(chain, observation, L).mean.flatten(), law.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_observations_are_taken_in_float64(dtype: torch.dtype):
    chain = rotation()
    H, R, y = torch.eye(2)[:1].to(dtype), torch.eye(1).to(dtype), torch.ones(2, 1).to(dtype)
    observation = LinearObservation(range(2), H, R, y)
    exact = LinearObservation([0, 1], H.double(), R.double(), y.double())
    for smooth in (posterior, rts_smoother):
        for law, expected in zip(
            smooth(chain, observation, 4), smooth(chain, exact, 4), strict=True
        ):
            assert torch.equal(law, expected)


@pytest.mark.parametrize("method", [posterior, kalman_filter, rts_smoother])
def test_times_are_of_the_trajectory(method):
    chain = rotation()
    with pytest.raises(ValueError, match="times must be below the length, 9, but go up to 9"):
        method(chain, observe(chain, [2, 9, 4]), 9)
    for times in ([0, -1], [0, 1.5]):
        with pytest.raises(ValueError, match=r"whole numbers from 0 on, got \[0, "):
            observe(chain, times)


def test_sizes_of_an_observation():
    observation = observe(rotation(), [0, 3])
    for name in ("H", "R", "y"):
        x = getattr(observation, name)
        for wrong in (x[:0], x[None], x[0]):
            with pytest.raises(ValueError, match=r"H, R and y must have shapes .*, got shapes"):
                replace(observation, **{name: wrong})
    with pytest.raises(ValueError, match=r"y must be finite, or NaN .*, but is infinite"):
        replace(observation, y=observation.y / 0)


def test_one_state():
    chain = ar1()
    smoothed = rts_smoother(chain, observe(chain, [0]), 1)
    assert smoothed.mean.shape == (1, 1)
    assert smoothed.lag_one.shape == (0, 1, 1)


# Noise estimators


@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("t", [0.0, 0.2, 1.0])
def test_estimator(t: float, kind: str):
    """It is -sigma times the gradient of the log-density of N(mu m, mu^2 S + sigma^2 I)."""
    law, L, D = spring().joint(5), 5, 4
    sde = getattr(sda_fast, kind)(nn.Identity(), (L, D))
    mu, sigma = oracles.levels(kind, "cos", t)
    noisy = torch.distributions.MultivariateNormal(
        mu * law.mean, mu**2 * law.covariance + sigma**2 * torch.eye(L * D)
    )
    x = torch.randn(3, L, D, requires_grad=True)
    (score,) = torch.autograd.grad(noisy.log_prob(x.flatten(1)).sum(), x)

    eps = GaussianEstimator(law, sde)(x, torch.tensor(t))
    close(eps, -sigma * score, 1e-8)


def test_estimator_of_shapes_and_types():
    law = ar1().joint(6)
    estimator = GaussianEstimator(law, VPSDE(nn.Identity(), ()))
    x, t = torch.randn(2, 5, 6), torch.rand(2, 5)
    eps = estimator(x, t)
    for i, j in product(range(2), range(5)):
        close(eps[i, j], estimator(x[i, j], t[i, j]))
    shared = estimator(x.reshape(10, 3, 2), torch.tensor(0.4)).reshape(2, 5, 6)
    close(shared, estimator(x, torch.full((2, 5), 0.4)))
    assert estimator(x.float(), t.float()).dtype == torch.float32
    assert estimator(x[:0], torch.tensor(0.4)).shape == (0, 5, 6)


def test_window_estimator():
    """The mask says how many states there are; the estimate is that of their law."""
    chain, w, D = steady_spring(), 5, 4
    sde = VPSDE(nn.Identity(), ())
    kernel = WindowEstimator(chain.joint(w), w, sde)
    x, t = torch.randn(3, 6, w * D), torch.tensor(0.3)
    lengths = [5, 1, 3, 4, 2, 5]
    mask = (torch.arange(w) < torch.tensor(lengths)[:, None]).double()

    eps = kernel(x, t, mask)
    for i, n in enumerate(lengths):
        alone = GaussianEstimator(chain.joint(n), sde)(x[:, i, : n * D], t)
        close(eps[:, i, : n * D], alone)
        assert not eps[:, i, n * D :].any()

    close(kernel(x, t), GaussianEstimator(chain.joint(w), sde)(x, t))
    close(kernel(x, t, torch.cat((torch.randn(6, 2), mask), dim=-1)), eps)


# Composition


@pytest.mark.parametrize("rule", ["centre", "junction"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", list(CHAINS))
def test_one_window_is_exact(name: str, k: int, rule: str):
    """With L = 2k + 1 either composition is the whole law, at any noise level."""
    chain, L = CHAINS[name](), 2 * k + 1
    sde = composed(chain, L, rule, L)
    exact = GaussianEstimator(chain.joint(L), sde)
    x = torch.randn(3, L, len(chain.b))
    for t in torch.tensor([0.0, 0.1, 0.5, 1.0]):
        close(sde.eps(x, t), exact(x, t))


RULES = [Centre(1), Centre(4), Junction(3, 1), Junction(3, 2), Junction(9, 1), Junction(9, 4)]
RULES += [Junction(9, 7), Junction(9, 8)]


@pytest.mark.parametrize("length", [9, 14, 33])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", list(STATIONARY))
def test_composition_of_clean_states_is_exact(name: str, rule: Centre | Junction, length: int):
    """As sigma goes to 0 the states are a Markov chain, whose score windows give, for any stride
    and with whatever is left at the end: -S^-1 (x - m), here with sigma = 1e-7."""
    chain = STATIONARY[name]()
    window = rule.window if isinstance(rule, Junction) else 2 * rule.order + 1
    sde = composed(chain, length, rule, window, eta=1e-7)
    mean, S = chain.joint(length)
    root = torch.linalg.cholesky(S)
    x = mean + torch.randn(3, len(mean)) @ root.T

    t = torch.tensor(0.0)
    score = -sde.eps(x.reshape(3, length, -1), t).flatten(1) / sde.sigma(t)
    exact = -torch.linalg.solve(S, (x - mean).T).T
    assert (score - exact).norm() < 1e-5 * exact.norm()


def second_order() -> LinearGaussianChain:
    """x_i = 1.2 x_{i-1} - 0.5 x_{i-2} + N(0, 1), as a chain of pairs (x_i, x_{i-1})."""
    A = torch.tensor([[1.2, -0.5], [1.0, 0.0]])
    return LinearGaussianChain.stationary(A, torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(
    ("rule", "exact"),
    [
        (Junction(3, 1), True),  # overlaps of 2 states
        (Junction(3, 2), False),  # of 1
        (Junction(5, 3), True),  # of 2
        (Centre(1), False),  # 1 state on either side
        (Centre(2), True),  # 2
    ],
    ids=str,
)
def test_what_memory_asks_of_a_composition(rule: Centre | Junction, exact: bool):
    """A scalar that depends on the two before: windows of 3 states are enough for the junction
    rule with overlaps of 2, not for the centre rule."""
    L = 15
    pairs = second_order().joint(L)
    law = Gaussian(pairs.mean[::2], pairs.covariance[::2, ::2])
    window = rule.window if isinstance(rule, Junction) else 2 * rule.order + 1
    sde = VPSDE(nn.Identity(), (L, 1), eta=1e-7)
    network = MCScoreNet(1, order=window // 2, composition=rule, length_aware=True)
    network.kernel = WindowEstimator(
        Gaussian(law.mean[:window], law.covariance[:window, :window]), window, sde
    )
    x = torch.randn(3, L, 1)
    t = torch.tensor(0.0)
    score = -network(x, t).flatten(1) / sde.sigma(t)
    expected = -torch.linalg.solve(law.covariance, x.flatten(1).T).T
    error = float((score - expected).norm() / expected.norm())
    assert error < 1e-5 if exact else error > 0.05


# The predictor: affine in the initial noise, so that its law needs no sampling


def affine(law: Gaussian, kind: str, name: str, t: float) -> tuple[Tensor, Tensor]:
    """The exact estimate as a matrix and a vector."""
    mu, sigma = oracles.levels(kind, name, t)
    eye = torch.eye(len(law.mean))
    E = sigma * torch.linalg.inv(mu**2 * law.covariance + sigma**2 * eye)
    return E, -mu * E @ law.mean


def probe(sde: VPSDE, steps: int, **kwargs) -> tuple[Tensor, Tensor]:
    """Finds M and a of samples M x(1) + a by sampling from basis vectors."""
    n = math.prod(sde.shape)
    x1 = torch.cat((torch.zeros(1, n), torch.eye(n))).reshape(n + 1, *sde.shape)
    x = sda_fast.sample(sde, (n + 1,), steps=steps, x1=x1, **kwargs).reshape(n + 1, n)
    return (x[1:] - x[0]).T, x[0]


def law_of(sde: VPSDE, steps: int, **kwargs) -> Gaussian:
    M, a = probe(sde, steps, **kwargs)
    return Gaussian(a, M @ M.T)


def divergence(p: Gaussian, q: Gaussian) -> float:
    normal = torch.distributions.MultivariateNormal
    return float(torch.distributions.kl_divergence(normal(*p), normal(*q)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("alpha", oracles.ALPHAS)
@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("name", list(CHAINS))
def test_predictor_is_its_recursion(name: str, kind: str, alpha: str, backend: str):
    """Sampling from basis vectors gives the product of the steps' matrices, to rounding."""
    chain, L = CHAINS[name](), 9
    law = posterior(chain, observe(chain, [0, 4, 8]), L)
    sde = getattr(sda_fast, kind)(nn.Identity(), (L, len(chain.b)), alpha=alpha)
    sde.eps = GaussianEstimator(law, sde)

    M, a = oracles.sampled_law(
        partial(affine, law, kind, alpha),
        lambda t: oracles.levels(kind, alpha, t)[0],
        lambda t: oracles.levels(kind, alpha, t)[1],
        steps=32,
    )
    sampled_M, sampled_a = probe(sde, 32, backend=backend)
    assert (sampled_M - M).norm() < 1e-10 * M.norm()
    assert (sampled_a - a).norm() < 1e-10 * a.norm()


def flow(law: Gaussian, sde: VPSDE, x1: Tensor) -> Tensor:
    """Solves the probability flow from t = 1 to 0: along each principal axis of the law it scales
    the distance to the mean as the standard deviation."""
    (mu1, mu0), (sigma1, sigma0) = (c.tolist() for c in coefficients(sde, torch.tensor([1.0, 0.0])))
    values, vectors = torch.linalg.eigh(law.covariance)
    scale = torch.sqrt((mu0**2 * values + sigma0**2) / (mu1**2 * values + sigma1**2))
    return mu0 * law.mean + ((x1 - mu1 * law.mean) @ vectors * scale) @ vectors.T


@pytest.mark.parametrize("alpha", ["cos", "exp"])
def test_observed_orders(alpha: str):
    """Doubling the steps divides the error of the flow by 2^order."""
    chain, L = ar1(0.5), 5
    law = posterior(chain, observe(chain, [0, 4]), L)
    sde = estimated(law, (L, 1), alpha=alpha)
    x1 = torch.randn(8, L, 1)
    exact = flow(law, sde, x1.flatten(1))

    def error(order: int, steps: int) -> float:
        x = sda_fast.sample(sde, (8,), steps=steps, x1=x1, order=order)
        return float((x.flatten(1) - exact).norm())

    for steps in (32, 64):
        observed = [math.log2(error(p, steps) / error(p, 2 * steps)) for p in (1, 2, 3)]
        assert 0.9 < observed[0] < 1.1
        assert 1.8 < observed[1] < 2.2
        assert observed[2] > 2.6
        assert error(3, steps) < 0.3 * error(2, steps) < 0.1 * error(1, steps)


@pytest.mark.parametrize("name", list(CHAINS))
def test_predictor_converges_to_the_posterior(name: str):
    """The law of samples goes to the smoother's at the first order: 512 steps are within 1 % in
    covariance, of twice that with half the steps. What remains, at any number of steps, is that
    x(1) is not quite noise and x(0) not quite clean: of the order of mu(1) = sigma(0) = 1e-3."""
    chain, L = CHAINS[name](), 9
    D = len(chain.b)
    observation = observe(chain, [0, 4, 8])
    smoothed = rts_smoother(chain, observation, L)
    law = posterior(chain, observation, L)
    sde = estimated(law, (L, D))
    scale = law.covariance.norm()

    errors = []
    for steps in (256, 512):
        sampled = law_of(sde, steps)
        errors.append(float((sampled.covariance - law.covariance).norm() / scale))
        spread = smoothed.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        distance = (sampled.mean.reshape(L, D) - smoothed.mean).abs()
        assert (distance < 0.01 * (spread + smoothed.mean.abs().max())).all()
    assert errors[1] < 0.01
    assert errors[1] < 0.55 * errors[0]


def test_composition_table():
    """The divergence that each composition leaves, AR(1) with a = 0.98, 33 states, 128 steps: the
    junction rule beats the centre's at every stride, at less than half the windows."""
    chain, L = ar1(0.98), 33
    truth = chain.joint(L)
    measured = {
        rule: divergence(law_of(composed(chain, L, rule, 9), 128), truth)
        for rule in (Centre(4), Junction(9, 1), Junction(9, 2), Junction(9, 4))
    }
    measured["exact"] = divergence(law_of(estimated(truth, (L, 1)), 128), truth)
    assert measured == pytest.approx(
        {
            Centre(4): 4.06,
            Junction(9, 1): 1.45,
            Junction(9, 2): 1.69,
            Junction(9, 4): 2.41,
            "exact": 0.068,
        },
        rel=0.01,
    )


# Samples: mean and covariance against the smoother's


def assert_law(x: Tensor, law: Gaussian, allowance: float, wide: float = 0.0) -> None:
    """Asserts that samples (N, n) have a law, to 5 standard errors of their mean and covariance, an
    allowance relative to the law's own scale and a variance in excess."""
    n = len(x)
    variance = law.covariance.diagonal()
    bias = allowance * (variance.sqrt() + law.mean.abs().max())
    assert ((x.mean(0) - law.mean).abs() < 5 * (variance / n).sqrt() + bias).all()

    # the standard error of a covariance of Gaussian samples
    product = variance * variance[:, None]
    error = 5 * ((product + law.covariance**2) / n).sqrt() + allowance * product.sqrt()
    error = error + wide * torch.eye(len(variance))
    assert ((x.T.cov() - law.covariance).abs() < error).all()


@pytest.mark.parametrize("name", list(CHAINS))
def test_exact_posterior(name: str):
    """With the score of the posterior, samples have the law that the smoother says: 4096 samples,
    5 standard errors, and 4 % for the discretisation, which halves with every doubling of the
    steps (see `test_predictor_converges_to_the_posterior`)."""
    chain, L = CHAINS[name](), 9
    D = len(chain.b)
    observation = observe(chain, [0, 4, 8])
    law = posterior(chain, observation, L)
    smoothed = rts_smoother(chain, observation, L)
    close(law.mean.reshape(L, D), smoothed.mean)

    x = sda_fast.sample(estimated(law, (L, D)), (4096,), steps=128, seed=1)
    assert_law(x.flatten(1), law, allowance=0.04)


def excess(law: Gaussian) -> float:
    r"""The variance by which corrections are too wide even for tau to 0.

    Their step depends on the state, so that they leave not p(x) as it is but p(x) mean(eps^2); for
    a Gaussian law P the covariance of that is P + 2 I / tr(P^-1).
    """
    return 2 / float(torch.linalg.inv(law.covariance).trace())


@pytest.mark.parametrize("name", list(CHAINS))
def test_exact_posterior_with_corrections(name: str):
    """The same, where corrections after every step must do no harm but their known excess."""
    chain, L = CHAINS[name](), 33
    D = len(chain.b)
    law = posterior(chain, observe(chain, [0, 16, 32]), L)

    x = sda_fast.sample(estimated(law, (L, D)), (4096,), steps=128, corrections=1, tau=0.05, seed=1)
    assert_law(x.flatten(1), law, allowance=0.04, wide=excess(law))


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["centre", "junction"])
@pytest.mark.parametrize("name", list(CHAINS))
def test_guided_composition_is_the_posterior(name: str, rule: str, t: float):
    """Prior, composition and guidance together. A number is observed: then A V[x | x(t)] A^T is a
    number too, and with the gamma that says so the guided estimate is the posterior's."""
    chain, L = CHAINS[name](), 9
    D = len(chain.b)
    observation = observe(chain, [4])
    law = posterior(chain, observation, L)
    sde = composed(chain, L, rule, L)

    guidance = GaussianScore(
        observation.y[0],
        lambda x: x[..., 4, :1],
        float(observation.R.sqrt()),
        sde,
        gamma=exact_gamma(chain.joint(L), observation.matrix(L), t),
    )
    x = torch.randn(3, L, D)
    time = torch.tensor(t)
    close(guidance(x, time), GaussianEstimator(law, sde)(x, time), 1e-8)


def exact_gamma(prior: Gaussian, H: Tensor, t: float) -> float:
    """(mu / sigma)^2 H V[x | x(t)] H^T for one row H."""
    mu, sigma = oracles.levels("VPSDE", "cos", t)
    S = prior.covariance
    noisy = mu**2 * S + sigma**2 * torch.eye(len(S))
    V = S - mu**2 * S @ torch.linalg.solve(noisy, S)
    return float(H @ V @ H.T) * mu**2 / sigma**2


@pytest.mark.parametrize("name", list(CHAINS))
def test_assimilation(name: str):
    """The whole way: the prior's windows composed, guided by an observation, sampled; the law is
    the smoother's. The predictor is affine, so there is no sampling error: 2 % at 256 steps."""
    chain, L = CHAINS[name](), 9
    D = len(chain.b)
    observation = observe(chain, [4])
    smoothed = rts_smoother(chain, observation, L)
    prior = composed(chain, L, "centre", L)
    guidance = GaussianScore(
        observation.y[0], lambda x: x[..., 4, :1], float(observation.R.sqrt()), prior
    )

    def eps(x: Tensor, t: Tensor) -> Tensor:
        guidance.gamma.fill_(exact_gamma(chain.joint(L), observation.matrix(L), float(t)))
        return guidance(x, t)

    mean, covariance = law_of(oracles.Process(eps, (L, D)), 256)
    blocks = covariance.reshape(L, D, L, D)
    spread = smoothed.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (mean.reshape(L, D) - smoothed.mean).abs()
    assert (error < 0.02 * (spread + smoothed.mean.abs().max())).all()
    for i in range(L):
        assert (blocks[i, :, i] - smoothed.covariance[i]).norm() < 0.02 * smoothed.covariance.norm()


# The corrector


def langevin(law: Gaussian, t: float, tau: float, count: int, N: int) -> tuple[Tensor, Gaussian]:
    """Takes samples of x(t) through corrections, and returns them with the law of x(t)."""
    sde = estimated(law, (len(law.mean),))
    mu, sigma = oracles.levels("VPSDE", "cos", t)
    noisy = Gaussian(mu * law.mean, mu**2 * law.covariance + sigma**2 * torch.eye(len(law.mean)))
    x = noisy.mean + torch.randn(N, len(law.mean)) @ torch.linalg.cholesky(noisy.covariance).T
    time = torch.tensor(t)
    for i in range(count):
        ops.langevin_(x, sde.eps(x, time), sigma, tau, seed=3, step=1, correction=i)
    return x, noisy


@pytest.mark.parametrize("t", [0.2, 0.5])
def test_law_of_the_corrector(t: float):
    """What small corrections leave as it is: 8192 samples, 5 standard errors and tau = 2 %."""
    chain = ar1(0.8)
    law = posterior(chain, observe(chain, [0, 8]), 9)
    x, noisy = langevin(law, t, tau=0.02, count=400, N=8192)
    wide = excess(noisy) * torch.eye(9)
    assert_law(x, Gaussian(noisy.mean, noisy.covariance + wide), allowance=0.02)


@pytest.mark.parametrize("tau", [0.1, 0.4])
def test_bias_of_the_corrector(tau: float):
    """For white noise of variance v, x' = (1 - tau / v) x + sqrt(2 tau / v) z leaves v = 1 + tau/2.
    That sees a wrong ratio of noise to drift, which small steps would not."""
    n, N = 64, 4096
    x, noisy = langevin(ar1(0.0).joint(n), 0.4, tau, count=math.ceil(6 / tau), N=N)
    measured = float(x.var() / noisy.covariance[0, 0])
    expected = (1 + tau / 2) * (1 + 2 / n)
    assert measured == pytest.approx(expected, abs=5 * math.sqrt(2 / (N * n)))


def test_corrector_finds_the_law():
    """Where the predictor is coarse corrections repair what it leaves: 16 steps."""
    chain, L = ar1(0.9), 17
    law = posterior(chain, observe(chain, [0, 8, 16]), L)
    sde = estimated(law, (L, 1))
    error = {}
    for corrections in (0, 8):
        x = sda_fast.sample(sde, (4096,), steps=16, corrections=corrections, tau=0.1, seed=2)
        error[corrections] = float((x.flatten(1).T.cov() - law.covariance).norm())
    assert error[8] < 0.5 * error[0]
