"""Networks of the reference package's experiments are rebuilt from their states."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import MCScoreNet, MCScoreWrapper, ScoreUNet, from_reference_state, load_prior, sample

TRAINING = {"epochs": 4096, "batch_size": 64, "optimizer": "AdamW", "scheduler": "linear"}


class LocalUNet(ScoreUNet):
    """A U-Net that ignores its context and takes a forcing of its own, as the reference's does."""

    def __init__(self, channels: int, size: int, **kwargs: Any):
        super().__init__(channels, 1, **kwargs)
        y = (torch.arange(size) + 0.5) * 2 * torch.pi / size
        self.register_buffer("forcing", torch.sin(4 * y).repeat(1, size, 1))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return super().forward(x, t, self.forcing)


def kolmogorov() -> tuple[nn.Module, dict[str, Any]]:
    config = {"window": 5, "embedding": 8, "hidden_channels": [4, 6], "hidden_blocks": [1, 2]}
    score = MCScoreNet(2, order=2)
    size = {k: v for k, v in config.items() if k != "window"}
    score.kernel = LocalUNet(10, 8, **size, activation=nn.SiLU, spatial=2, padding_mode="circular")
    return score, config | {"kernel_size": 3, "activation": "SiLU"}


def local() -> tuple[nn.Module, dict[str, Any]]:
    config = {"window": 3, "embedding": 8, "width": 16, "depth": 2, "activation": "ELU"}
    hidden = {"hidden_features": [16, 16], "activation": nn.ELU}
    return MCScoreNet(3, order=1, embedding=8, **hidden), config


def whole() -> tuple[nn.Module, dict[str, Any]]:
    config = {"embedding": 8, "hidden_channels": [4, 6], "hidden_blocks": [2, 1]}
    unet = ScoreUNet(3, **config, activation=nn.SiLU, spatial=1)
    return MCScoreWrapper(unet), config | {"activation": "SiLU"}


CASES = {
    "kolmogorov": (kolmogorov, (64, 2, 8, 8)),
    "local": (local, (65, 3)),
    "whole": (whole, (32, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_rebuilt(name: str):
    """The same numbers, of the same shape, without a context."""
    make, shape = CASES[name]
    score, config = make()
    sde = from_reference_state(score.state_dict(), config | TRAINING)
    assert sde.shape == shape
    assert not any(p.requires_grad for p in sde.parameters())

    sde = from_reference_state(score.state_dict(), config, length=8)
    x, t = torch.randn(2, 8, *shape[1:]), torch.tensor(0.4)
    with torch.no_grad():
        torch.testing.assert_close(sde.eps(x, t), score(x, t), rtol=1e-5, atol=1e-5)
    assert sample(sde, (2,), steps=2).shape == (2, 8, *shape[1:])


def test_files(tmp_path: Path):
    score, config = local()
    torch.save(score.state_dict(), tmp_path / "state.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "other.json").write_text(json.dumps(config | {"width": 8}))

    sde = from_reference_state(tmp_path / "state.pth")
    state = sde.eps.state_dict()
    assert all(torch.equal(state[key], value) for key, value in score.state_dict().items())
    with pytest.raises(ValueError, match=r"not of the network that config describes: .*mismatch"):
        from_reference_state(tmp_path / "state.pth", tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        from_reference_state(tmp_path / "nothing.pth", config)
    alone = tmp_path / "alone" / "state.pth"
    alone.parent.mkdir()
    torch.save({}, alone)
    with pytest.raises(FileNotFoundError, match="looked for beside the state unless config="):
        from_reference_state(alone)
    with pytest.raises(ValueError, match="from_reference_state reads others"):
        load_prior(alone)


class Trap:
    def __reduce__(self) -> Any:
        return (Path("trapped").touch, ())


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_not_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None):
    """Nothing in a file is executed."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pth"
    if content is None:
        torch.save(Trap(), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pth is not a state"):
        from_reference_state(path, {})
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 5}, "window must divide the network's 9 channels, got 5"),
        ({"activation": "Tanh"}, "activation must be one of"),
        ({"depth": 3}, r"not of the network that config describes: .*Missing"),
    ],
)
def test_another_configuration(change: dict[str, Any], message: str):
    score, config = local()
    with pytest.raises(ValueError, match=message):
        from_reference_state(score.state_dict(), config | change)


def test_another_state():
    with pytest.raises(ValueError, match=r"composed from windows .*, got a, b"):
        from_reference_state({"a.x": torch.zeros(1), "b": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="config must be given"):
        from_reference_state({})
    score, config = kolmogorov()
    with pytest.raises(ValueError, match=r"not of a U-Net with channels \[4\]"):
        from_reference_state(score.state_dict(), config | {"hidden_channels": [4]})
