"""What memory costs a composition, in closed form, against facts that are known otherwise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments import hidden_variable as study
from experiments.hidden_variable import CENTRE, EXACT, JUNCTION, LIMIT, Cell
from experiments.pseudo_blanket import make_chain
from sda_fast import VPSDE
from sda_fast.evaluation import Gaussian, kl_divergence

CELL = Cell(
    length=13,
    rule=JUNCTION,
    window=3,
    share=0.8,
    time=5.0,
    markov=False,
    corrections=LIMIT,
    steps=32,
    tau=0.1,
)
ROUNDING = 1e-5  # nats; the last noise level is not zero


def limit(**changes: object) -> float | None:
    return study.evaluate(replace(CELL, **changes))["prior"]  # type: ignore[arg-type]


def test_law_of_the_visible_states():
    """The covariance of neighbours follows from that of x and z: m = a b m + b g sqrt(s)."""
    s, T = 0.7, 3.0
    a, b = math.exp(-1 / study.MEMORY), math.exp(-1 / T)
    chain = study.hidden_chain(s, T)
    torch.testing.assert_close(chain.first.covariance.diagonal(), torch.ones(2).double())
    drive = float(chain.A[0, 1])  # g sqrt(s)
    m = b * drive / (1 - a * b)
    law = study.visible(s, T, 4)
    assert float(law.covariance[0, 1]) == pytest.approx(a + drive * m)
    twin = study.markov_twin(law)
    torch.testing.assert_close(twin.covariance[:2, :2], law.covariance[:2, :2])


@pytest.mark.parametrize("rule", [CENTRE, JUNCTION])
def test_without_a_hidden_share_it_is_the_markov_chain(rule: str):
    """Nothing is lost of a Markov chain, whatever the window."""
    law = study.visible(0.0, 5.0, 13)
    chain = make_chain(math.exp(-1 / study.MEMORY))
    torch.testing.assert_close(law.covariance, chain.joint(13).covariance)
    for window in (3, 5):
        assert limit(rule=rule, window=window, share=0.0) == pytest.approx(0, abs=ROUNDING)
        assert limit(rule=rule, window=window, time=0.01) == pytest.approx(0, abs=ROUNDING)
        assert limit(rule=rule, window=window, markov=True) == pytest.approx(0, abs=ROUNDING)


def test_two_states_tell_a_drive_that_is_all_hidden():
    """With s = 1 the states are an autoregression of order 2: an overlap of two states is exact,
    and one neighbour on either side is not enough for the centre."""
    assert limit(share=1.0, window=2) > 1
    assert limit(share=1.0, window=3) == pytest.approx(0, abs=ROUNDING)
    assert limit(share=1.0, window=3, rule=CENTRE) is None
    assert limit(share=1.0, window=5, rule=CENTRE) == pytest.approx(0, abs=ROUNDING)


@pytest.mark.parametrize("window", [2, 3])
def test_junction_is_the_chain_of_its_overlap(window: int):
    """A step forward, what is lost of a state is the information of all states on it beyond that
    of the w - 1 before it: half the logarithm of the ratio of the variances left."""
    law = study.visible(0.8, 5.0, 13)
    sde = VPSDE(nn.Identity(), shape=(13, 1))
    S = study.langevin_limit(study.precision(study.compose(JUNCTION, window, law, sde), sde))
    assert S is not None
    left = torch.linalg.cholesky(law.covariance).diagonal().square()
    expected = (left[window - 1] / left[window - 1 :]).log().sum() / 2
    lost = kl_divergence(law, Gaussian(law.mean, S))
    assert lost == pytest.approx(float(expected), rel=1e-3)
    assert lost > 0.01


@pytest.mark.parametrize("time", [1.0, 5.0, 20.0])
def test_wider_windows_are_never_worse(time: float):
    costs = [limit(window=w, time=time) for w in (2, 3, 5, 7, 9, 13)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(0, abs=ROUNDING)  # a window of the whole trajectory
    assert costs[0] > 0.1

    # the centre rule too, once it is stable
    costs = [limit(window=w, time=time, rule=CENTRE) for w in (3, 5, 7, 9, 13)]
    assert costs[0] is None
    stable = [cost for cost in costs if cost is not None]
    assert stable == sorted(stable, reverse=True)
    assert stable[-1] == pytest.approx(0, abs=ROUNDING)


def test_langevin_limit():
    """It is where the corrector's own recursion ends, as its steps get small."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    B = root @ root.T + torch.eye(5) + 0.3 * torch.randn(5, 5, generator=generator).double()
    limit = study.langevin_limit(B)
    assert limit is not None
    eye, delta, S = torch.eye(5).double(), 1e-3, torch.eye(5).double()
    for _ in range(10_000):
        P = eye - delta * B
        S = P @ S @ P.T + 2 * delta * eye
    torch.testing.assert_close(S, limit, rtol=1e-2, atol=1e-3)
    assert study.langevin_limit(B - 10 * eye) is None

    # of a score it is the truth
    torch.testing.assert_close(
        study.langevin_limit(root @ root.T + eye), (root @ root.T + eye).inverse()
    )


def test_posteriors():
    """With the exact score they are exact; otherwise it is the mean over observations."""
    law = study.visible(0.8, 5.0, 9)
    sde = VPSDE(nn.Identity(), shape=(9, 1))
    exact = study.precision(study.compose(EXACT, 0, law, sde), sde)
    assert study.divergence_of_posterior(exact, law) == pytest.approx(0, abs=ROUNDING)

    B = study.precision(study.compose(CENTRE, 3, law, sde), sde)
    assert study.langevin_limit(B) is None  # observations hold what the prior does not
    H, var = torch.eye(9).double()[:: study.EVERY], study.STD**2
    R = var * torch.eye(len(H)).double()
    posterior = B + H.T @ H / var
    S = study.langevin_limit(posterior)
    assert S is not None
    generator = torch.Generator().manual_seed(0)
    found = []
    for x in law.sample((500,), generator=generator):
        y = H @ x + study.STD * torch.randn(len(H), generator=generator).double()
        mean = torch.linalg.solve(posterior, H.T @ y / var)
        found.append(kl_divergence(Gaussian(mean, S), law.condition(H, R, y)))
    values = torch.tensor(found)
    error = 5 * float(values.std()) / len(found) ** 0.5
    assert study.divergence_of_posterior(B, law) == pytest.approx(float(values.mean()), abs=error)


def test_sampler():
    """With the exact score steps converge; of a composition, corrections to the limit."""
    few, many = (
        study.evaluate(replace(CELL, rule=EXACT, corrections=0, steps=n))["kl"] for n in (32, 256)
    )
    assert 0 < many < few / 4

    cell = replace(CELL, corrections=400, steps=8, tau=0.05)
    assert study.evaluate(cell)["kl"] == pytest.approx(limit(), rel=0.1)
    assert study.evaluate(replace(cell, markov=True))["kl"] < 0.02


def test_tables(tmp_path):
    profile = study.Profile(
        length=9,
        windows=(2, 3, 9),
        shares=(0.0, 1.0),
        times=(5.0,),
        middle=(0.8, 5.0),
        sampled=(3,),
        corrections=(0, 2),
        steps=16,
        tau=0.1,
    )
    records = study.evaluate_all(tmp_path, profile)
    text = study.tables(records, profile)
    # the centre has windows from 3 on; an order of 2 is beyond one of 3, and told by one of 9
    assert "| centre | 0 | 3 |" in text
    assert "| centre | 1 | 9 |" in text
    assert "| junction | 0 | 2 |" in text
    assert "| junction | 1 | 3 |" in text
    assert "| centre | 3 | unstable / " in text
    _, axes = study.study.panels(1, 3)
    study.draw(records, profile, axes[0])
    assert study.evaluate_all(tmp_path, profile) == records
