"""The configuration of a training run, and the files it is read from."""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sda_fast.io import build_network
from sda_fast.training import Config, read_config


def test_defaults_are_the_papers():
    config = Config()
    assert (config.window, config.width, config.depth, config.embedding) == (5, 256, 5, 32)
    assert (config.batch_size, config.learning_rate, config.weight_decay) == (64, 1e-3, 1e-3)
    assert (config.trajectories, config.states, config.activation) == (1024, 1024, "SiLU")
    network = build_network(config.network((3,)))
    assert tuple(network.kernel.network[0].weight.shape) == (256, 15 + 32)
    assert sum(isinstance(m, nn.Linear) for m in network.kernel.network) == 2


def test_mixture_of_lengths():
    """By default the full window as often as all shorter ones together."""
    assert Config(order=2).mixture == (5,)
    assert Config(order=2, length_aware=True).mixture == (1, 2, 3, 4, 5, 5, 5, 5)
    config = Config(order=2, length_aware=True, lengths=(5, 3))
    assert (config.mixture, config.parts, config.learnt) == ((5, 3), (), [3, 5])


def test_lengths_with_consistency():
    """Those of what is cut out of whole windows."""
    config = Config(order=2, length_aware=True, consistency=True)
    assert (config.mixture, config.parts) == ((5,), (1, 2, 3, 4))
    assert "lengths" not in config.network((3,))
    config = Config(order=2, length_aware=True, consistency=True, lengths=(4, 3, 3))
    assert (config.mixture, config.parts) == ((5,), (4, 3, 3))
    assert build_network(config.network((3,))).lengths == (3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "lorenz64"}, "system must be one of lorenz63, .*, got 'lorenz64'"),
        ({"order": 0}, "order must be positive, got 0"),
        ({"width": -1}, "width must be positive, got -1"),
        ({"iterations": 0}, "iterations must be positive, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"ema": 1.0}, r"ema must be at least 0 and less than 1, got 1\.0"),
        ({"trajectories": 9}, "trajectories must be at least 10, got 9"),
        ({"states": 4}, "states must be at least 5, got 4"),
        ({"lengths": (5,)}, "lengths are only for a length_aware network"),
        ({"scheduler": "step"}, "scheduler must be one of linear, cosine, constant, got 'step'"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, got 'half'"),
        ({"composition": "junction"}, "only for a length_aware network"),
        ({"warmup": -1}, "warmup must not be negative, got -1"),
        ({"seed": -1}, r"seed must be between 0 and 2\^63 - 1, got -1"),
        ({"seed": 2**63}, r"seed must be between 0 and 2\^63 - 1, got 9223372036854775808"),
        ({"hidden_blocks": (1, 2)}, "as many as the 3 hidden_channels"),
        ({"parameters": {"rh": 1}}, "must be one of sigma, .*, got 'rh'"),
        ({"system": "lorenz63", "data": "x.h5", "coarsen": 2}, "of a simulated system"),
        ({"system": "lorenz96", "coarsen": 2}, "coarsen must be 1 for lorenz96, got 2"),
        ({"length_aware": True, "lengths": (6,)}, r"between 1 and 5, got \(6,\)"),
        ({"length_aware": True, "lengths": (0, 5)}, r"between 1 and 5, got \(0, 5\)"),
        ({"consistency": True}, "consistency is only for a length_aware network"),
        (
            {"length_aware": True, "consistency": True, "lengths": (5, 3)},
            r"between 1 and 4 with consistency, got \(5, 3\)",
        ),
    ],
    ids=str,
)
def test_bad_configuration(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_defaults_of_fields():
    config = Config(system="kolmogorov")
    assert (config.hidden_channels, config.hidden_blocks) == ((96, 192, 384), (3, 3, 3))
    assert (config.batch_size, config.learning_rate, config.embedding) == (32, 2e-4, 64)
    network = config.network((2, 64, 64))
    assert network["forcing"] == {"size": 64, "wavenumber": 4}
    assert (network["features"], network["spatial"]) == (2, 2)
    assert network["padding_mode"] == "circular"
    with pytest.raises(ValueError, match=r"multiples of 4 cells .* got \(2, 30, 30\)"):
        config.network((2, 30, 30))


CONTENT = {
    "toml": """
system = "lorenz96"
length_aware = true
lengths = [1, 3]
learning_rate = 1
[parameters]
n = 8
""",
    "json": """{"system": "lorenz96", "length_aware": true, "lengths": [1, 3], "learning_rate": 1,
"parameters": {"n": 8}, "states": null}""",
}


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_files(tmp_path: Path, kind: str):
    if kind == "toml":
        pytest.importorskip("tomllib")
    path = tmp_path / f"config.{kind}"
    path.write_text(CONTENT[kind])
    expected = Config(
        system="lorenz96",
        length_aware=True,
        lengths=(1, 3),
        learning_rate=1.0,
        parameters={"n": 8},
    )
    assert Config.of(read_config(path)) == expected
    assert isinstance(Config.of(read_config(path)).learning_rate, float)


def test_documented_configuration():
    tomllib = pytest.importorskip("tomllib")
    text = (Path(__file__).parents[1] / "docs" / "priors.md").read_text()
    (block,) = re.findall("```toml\n(.*?)```", text, re.DOTALL)
    values = tomllib.loads(block)
    assert values.pop("data") == "kolmogorov.h5"
    config = Config.of({"system": "kolmogorov", **values})
    assert config.network((2, 32, 32))["velocity"] == {"alpha": "cos", "eta": 1e-3}


def test_a_configuration_is_its_own_file():
    config = Config(system="kolmogorov", length_aware=True, lengths=(1, 5), warmup=3)
    assert Config.of(asdict(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "c.toml has no option 'batchsize': the nearest is 'batch_size'"),
        ({"learning-rate": 3}, "no option 'learning-rate': the nearest is 'learning_rate'"),
        ({"zzz": 3}, "no option 'zzz': the nearest is"),
        ({"width": 1.5}, r"width must be an integer, got 1\.5"),
        ({"width": True}, "width must be an integer, got True"),
        ({"width": None}, "width must be an integer, got None"),
        ({"ema": "0.9"}, "ema must be a number, got '0.9'"),
        ({"length_aware": 1}, "length_aware must be true or false, got 1"),
        ({"lengths": 3}, "lengths must be a list of integers, got 3"),
        ({"lengths": ["a"]}, r"lengths must be a list of integers, got \['a'\]"),
        ({"parameters": 3}, "parameters must be a table, got 3"),
        ({"activation": 3}, "activation must be text, got 3"),
    ],
    ids=str,
)
def test_bad_values(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Config.of(values, "c.toml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "c.json is not JSON"),
        ("c.json", "[1]", "must be a table of options, got list"),
        ("c.toml", "a = ", "c.toml is not TOML"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / name)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "nothing.toml")
