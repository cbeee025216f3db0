"""Recipes: that they fit their budgets, are taken by the sampler, and can be overridden."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.front import LAST
from sda_fast import VPSDE, Centre, GaussianScore, Junction, MCScoreNet, explain, sample
from sda_fast.presets import BUDGETS, LEAST, MEASURED, PRESETS, preset, scheduled, suggest


def prior(length_aware: bool = True, lengths: tuple[int, ...] | None = None) -> VPSDE:
    network = MCScoreNet(
        2,
        order=2,
        length_aware=length_aware,
        lengths=lengths,
        hidden_features=[8],
        activation=nn.SiLU,
    )
    return VPSDE(network, (9, 2))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    """The sampler takes a preset's options, and counts its evaluations as the preset does."""
    recipe = preset(name)
    assert explain(prior(), **recipe.options).evaluations == recipe.evaluations
    assert str(recipe.evaluations) in str(recipe)


def test_published():
    recipe = preset("published")
    assert recipe.evaluations == 4352
    assert (recipe.composition, recipe.options["clip"], recipe.denoise) == ("centre", None, False)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"name must be one of published, .*, got 'best'"):
        preset("best")


@pytest.mark.parametrize("name", BUDGETS)
def test_the_end_of_the_grid(name):
    recipe, usual = preset(name, last=0.003), preset(name)
    assert (recipe.steps[0], recipe.steps[-1]) == (usual.steps[0], pytest.approx(0.003))
    assert usual.steps[-1] == pytest.approx(0.007)
    assert BUDGETS[name] - 4 < recipe.evaluations <= BUDGETS[name]
    assert suggest(prior(), BUDGETS[name], last=0.003).steps == recipe.steps


def test_bad_ends_of_the_grid():
    for last in (-0.1, 0.7, float("nan")):
        with pytest.raises(ValueError, match=r"last must be at least 0 and below 0\.7, got"):
            preset("fast", last=last)
    with pytest.raises(ValueError, match="last is of draft, fast, accurate, 'published' ends at 0"):
        preset("published", last=0.003)


@pytest.mark.parametrize("budget", [LEAST, 13, 64, 128, 500])
def test_budget(budget):
    """As many steps as fit: one more would not."""
    recipe = scheduled("test", budget)
    assert LEAST // 2 < recipe.evaluations <= budget
    assert recipe.evaluations > budget - 9

    assert all(s > t for s, t in zip(recipe.steps, recipe.steps[1:], strict=False))
    assert recipe.corrections[-1] == 0
    assert recipe.tau[-1] < recipe.tau[0]


def test_suggest():
    sde = prior()
    recipe = suggest(sde, 40)
    assert recipe.composition == Junction(5, 2)
    assert "length-aware" in str(recipe)
    assert suggest(sde).evaluations == preset("fast").evaluations

    sde.eps.composition = recipe.composition
    x = sample(sde, (2,), seed=0, **recipe.options)
    assert float(x.abs().max()) <= recipe.clip + 1e-4  # an untrained network, and yet bounded

    assert suggest(prior(length_aware=False), 40).composition == Centre(2)
    assert suggest(VPSDE(nn.Identity(), (4,)), 40).composition is None


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((3, 5), Junction(5, 2)),  # five states, then two more twice
        ((4, 5), Junction(5, 1)),
        ((1, 5), Junction(5, 4)),
        ((5,), Centre(2)),
        ((1, 2), None),
    ],
)
def test_composition_that_the_network_has_learnt(lengths, expected):
    """A rule whose windows it scores: half a window apart, or else as near to it as it can."""
    sde = prior(lengths=lengths)
    recipe = suggest(sde, 40)
    assert recipe.composition == expected
    if expected is None:
        assert "windows of [1, 2] states, which no rule composes" in str(recipe)
    else:
        sde.eps.composition = recipe.composition
        assert sde.eps.plan(9).states == 9


def test_what_was_measured():
    """What `suggest` tells is what the study's kept results say."""
    rows = json.loads((Path(__file__).parents[1] / "experiments" / "front.json").read_text())
    names = {preset(name).evaluations: name for name in ("draft", "fast", "accurate")}
    assert list(MEASURED) == list(names)
    assert all(preset(name, last=LAST).evaluations == count for count, name in names.items())
    for evaluations, ratio in MEASURED.items():
        means = [row["w1"][0] for row in rows if row["name"] == names[evaluations]]
        assert ratio == round(sum(means) / len(means), 1)
    assert "1.2 with 64" in str(suggest(prior(), 40))


def test_suggest_for_seconds():
    """The time of an evaluation decides; the network is left as it was."""
    sde = prior()
    posterior = VPSDE(GaussianScore(torch.zeros(9, 2), lambda x: x, 0.1, sde), sde.shape)
    recipe = suggest(posterior, seconds=1e-9, shape=(3,))
    assert recipe.evaluations <= LEAST
    assert "too few" in str(recipe)
    assert suggest(posterior, seconds=60.0).evaluations > LEAST
    assert sde.eps.composition == "centre"


def test_overrides():
    recipe = suggest(
        prior(), 64, composition=Junction(5, 1), corrections=1, clip=None, denoise=False
    )
    assert recipe.composition == Junction(5, 1)
    assert set(recipe.corrections) == {0, 1}
    assert (recipe.clip, recipe.denoise) == (None, False)
    assert suggest(prior(), 64, tau=0.5).tau[0] == 0.5


def test_refusals():
    with pytest.raises(ValueError, match="not both"):
        suggest(prior(), 64, seconds=1.0)
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        suggest(prior(), seconds=0)
    with pytest.raises(ValueError, match="at least 8 score evaluations, got 3"):
        suggest(prior(), 3)
    with pytest.raises(TypeError, match="a recipe has no stride"):
        suggest(prior(), 64, stride=2)
    for name, value in (("corrections", 2.5), ("corrections", None), ("tau", "a"), ("steps", 0)):
        with pytest.raises(ValueError, match=rf"{name}.* must be"):
            suggest(prior(), 64, **{name: value})


def test_page():
    """The example of docs/front.md runs."""
    page = (Path(__file__).parents[1] / "docs" / "front.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, "front.md", "exec"), {})
