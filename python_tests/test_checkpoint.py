"""Runs that are interrupted: what they leave, and how they go on."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sda_fast import (
    VPSDE,
    DPSGaussianScore,
    GaussianScore,
    LikelihoodScore,
    MCScoreNet,
    MMPSGaussianScore,
    sample,
)
from sda_fast.composition import Junction
from sda_fast.likelihood import Huber, StudentT
from sda_fast.observation import Subsample
from sda_fast.sampler import checkpoint
from sda_fast.training import checkpoint as training_checkpoint
from sda_fast.training.checkpoint import read_header

L, D = 9, 3


def prior(width: int = 16, **options: Any) -> VPSDE:
    torch.manual_seed(0)
    options = {"activation": nn.SiLU} | options
    return VPSDE(MCScoreNet(D, order=1, hidden_features=[width], **options), (L, D))


def posterior() -> VPSDE:
    y = torch.ones(5, 1)
    return VPSDE(GaussianScore(y, lambda x: x[..., ::2, :1], 0.3, prior()), (L, D))


def stops_at(step: int, error: type[BaseException]) -> Callable[[int, float, Tensor], None]:
    def callback(n: int, t: float, x: Tensor) -> None:
        if n == step:
            raise error

    return callback


@pytest.mark.parametrize("make", [prior, posterior])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_resumes_to_the_same_bits(
    make: Callable[[], VPSDE], order: int, error: type[BaseException], tmp_path: Path
):
    sde, path = make(), tmp_path / "run.safetensors"
    options: dict[str, Any] = {"steps": 12, "corrections": 1, "tau": 0.3, "order": order}
    expected = sample(sde, (4,), seed=5, **options)

    options |= {"checkpoint": path, "checkpoint_every": 3}
    with pytest.raises(error):
        sample(sde, (4,), seed=5, callback=stops_at(8, error), **options)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # and no part of a file

    steps: list[int] = []
    result = sample(sde, (4,), callback=lambda n, t, x: steps.append(n), **options)
    assert steps == list(range(7, 13))
    assert torch.equal(result, expected)
    assert result.seed == 5
    assert not path.exists()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("first", "then"), [(3, 7), (7, 3), (8, 5), (5, 8)])
def test_resumes_in_other_parts(
    order: int, first: int, then: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """How many samples are guided at once is of the machine: of its threads, for instance."""

    def resumed() -> Tensor:
        return sample(posterior(), (8,), steps=6, order=order, seed=1, **options)

    options: dict[str, Any] = {}
    expected = resumed()
    options = {"checkpoint": tmp_path / "run", "checkpoint_every": 2}
    monkeypatch.setattr(MCScoreNet, "samples_at_once", lambda *_: first)
    options["callback"] = stops_at(5, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        resumed()
    monkeypatch.setattr(MCScoreNet, "samples_at_once", lambda *_: then)
    options["callback"] = None
    assert torch.equal(resumed(), expected)


def test_interrupt_in_the_network_leaves_nothing_behind():
    """Neither a backend, nor a mode of torch's, nor anything of the module's."""
    sde, options = posterior(), {"steps": 4, "seed": 1}
    expected = sample(sde, (2,), **options)
    A, calls = sde.eps.A, []

    def interrupted(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return A(x)

    sde.eps.A = interrupted
    with pytest.raises(KeyboardInterrupt):
        sample(sde, (2,), backend="reference", **options)
    sde.eps.A = A

    assert torch.is_grad_enabled()
    assert torch.equal(sample(sde, (2,), **options), expected)


def test_saved_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After every so many steps, but not after the last, when the run is finished."""
    saved: list[int] = []
    save = checkpoint.Checkpoint.save
    monkeypatch.setattr(
        checkpoint.Checkpoint,
        "save",
        lambda self, step, *state: (saved.append(step), save(self, step, *state)),
    )
    sample(prior(), steps=12, checkpoint=tmp_path / "c", checkpoint_every=4)
    assert saved == [4, 8]


def interrupted(path: Path, sde: VPSDE, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        sample(
            sde,
            (2,),
            callback=stops_at(3, KeyboardInterrupt),
            checkpoint=path,
            checkpoint_every=2,
            **{"steps": 5, "seed": 1} | options,
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 6}, "differs in times, levels, corrections, tau"),
        ({"seed": 2}, "differs in seed"),
        ({"corrections": 1}, "differs in corrections"),
        ({"tau": 0.5}, "differs in tau"),
        ({"order": 2}, "differs in order"),
        ({"denoise": True}, "differs in denoise"),
        ({"x1": torch.zeros(2, L, D)}, "differs in x1"),
    ],
)
def test_another_run(options: dict[str, Any], says: str, tmp_path: Path):
    path = tmp_path / "run"
    interrupted(path, prior())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run, which {says}: remove it"):
        sample(prior(), (2,), checkpoint=path, **{"steps": 5} | options)
    assert path.read_bytes() == before


def test_another_network(tmp_path: Path):
    path = tmp_path / "run"
    interrupted(path, prior())
    sde = prior()
    with torch.no_grad():
        next(sde.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"differs in sde\.eps\.kernel: "):
        sample(sde, (2,), checkpoint=path, steps=5)


def test_another_observation(tmp_path: Path):
    path = tmp_path / "run"
    interrupted(path, posterior())
    sde = posterior()
    sde.eps.y[0] = 2
    with pytest.raises(ValueError, match=r"differs in sde\.eps\.y: "):
        sample(sde, (2,), checkpoint=path, steps=5)


def composed(rule: Any) -> VPSDE:
    sde = prior(length_aware=True)
    sde.eps.composition = rule
    return sde


def guided(law: Callable[..., Any], *arguments: Any, **options: Any) -> VPSDE:
    return VPSDE(law(*arguments, prior(), **options), (L, D))


def likely(law: Callable[..., Any], **options: Any) -> VPSDE:
    return guided(LikelihoodScore, law(Y, SEEN, 0.3, **options))


Y = torch.ones(5, 1)
SEEN = Subsample((L, D), slice(None, None, 2), slice(0, 1))
OTHER = Subsample((L, D), slice(None, None, 2), slice(1, 2))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (lambda: composed("junction"), lambda: composed("centre"), "sde.eps.composition"),
        (lambda: composed(Junction(3, 1)), lambda: composed(Junction(3, 2)), "sde.eps.composition"),
        (
            lambda: guided(GaussianScore, Y, SEEN, 0.3),
            lambda: guided(GaussianScore, Y, SEEN, 0.3, detach=True),
            "sde.eps.detach",
        ),
        (
            lambda: guided(GaussianScore, Y, SEEN, 0.3),
            lambda: guided(GaussianScore, Y, OTHER, 0.3),
            "sde.eps.A",
        ),
        (
            lambda: guided(DPSGaussianScore, Y, SEEN, zeta=0.2),
            lambda: guided(DPSGaussianScore, Y, SEEN, zeta=1.0),
            "sde.eps.zeta",
        ),
        (
            lambda: guided(MMPSGaussianScore, Y, SEEN, 0.3, iterations=1),
            lambda: guided(MMPSGaussianScore, Y, SEEN, 0.3, iterations=3),
            "sde.eps.iterations",
        ),
        (
            lambda: guided(MMPSGaussianScore, Y, SEEN, 0.3),
            lambda: guided(GaussianScore, Y, SEEN, 0.3),
            "sde.eps",
        ),
        (lambda: likely(StudentT), lambda: likely(Huber), "sde.eps.log_prob"),
        (lambda: likely(StudentT, df=3), lambda: likely(StudentT, df=9), "sde.eps.log_prob"),
        (prior, lambda: prior(activation=nn.GELU), "sde.eps.kernel"),
        (prior, lambda: VPSDE(prior().eps, (L, D), alpha="lin"), "levels, sde.schedule"),
    ],
)
def test_another_process(
    one: Callable[[], VPSDE], other: Callable[[], VPSDE], says: str, tmp_path: Path
):
    path = tmp_path / "run"
    interrupted(path, one())
    with pytest.raises(ValueError, match=f"which differs in (backend, )?{re.escape(says)}: "):
        sample(other(), (2,), checkpoint=path, steps=5)
    assert torch.equal(
        sample(one(), (2,), checkpoint=path, steps=5), sample(one(), (2,), steps=5, seed=1)
    )


class Closed(VPSDE):
    """A process that keeps its schedule in a function."""

    def __init__(self, eps: Any, power: int):
        super().__init__(eps, (L, D))
        self.alpha = lambda t: 1 - 0.999 * t**power


def test_levels_of_the_prior(tmp_path: Path):
    path = tmp_path / "run"
    one, other = (
        VPSDE(GaussianScore(Y, SEEN, 0.3, Closed(prior().eps, p)), (L, D)) for p in (1, 2)
    )
    interrupted(path, one)
    with pytest.raises(ValueError, match="differs in levels: "):
        sample(other, (2,), checkpoint=path, steps=5)


def test_another_backend(tmp_path: Path):
    path = tmp_path / "run"
    interrupted(path, prior())
    with pytest.raises(ValueError, match="differs in backend: "):
        sample(prior(), (2,), checkpoint=path, steps=5, backend="reference")


def test_another_precision(tmp_path: Path):
    path, precision = tmp_path / "run", torch.get_float32_matmul_precision()
    interrupted(path, prior())
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(ValueError, match=r"differs in (backend, )?precision: "):
            sample(prior(), (2,), checkpoint=path, steps=5)
    finally:
        torch.set_float32_matmul_precision(precision)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"differs in (backend, )?precision: "),
    ):
        sample(prior(), (2,), checkpoint=path, steps=5)


def test_options_that_are_free(tmp_path: Path):
    path, expected = tmp_path / "run", sample(posterior(), (2,), steps=5, seed=1)
    interrupted(path, posterior())
    result = sample(
        posterior(), (2,), steps=5, checkpoint=path, window_batch=3, callback=lambda *_: None
    )
    assert torch.equal(result, expected)


def test_not_a_checkpoint(tmp_path: Path):
    path = tmp_path / "run"
    path.write_bytes(b"a recipe for soup")
    with pytest.raises(ValueError, match="run cannot be read"):
        sample(prior(), checkpoint=path, steps=2)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of the sampler"):
        sample(prior(), checkpoint=path, steps=2)
    interrupted(tmp_path / "other", prior())
    path.write_bytes((tmp_path / "other").read_bytes()[:-8])
    with pytest.raises(ValueError, match="run cannot be read"):
        sample(prior(), checkpoint=path, steps=2)


def test_checkpoint_of_training(tmp_path: Path):
    path = tmp_path / "prior.checkpoint"
    metadata = {"format": training_checkpoint.FORMAT, "state": "{}"}
    save_file({"generator": torch.zeros(2)}, path, metadata)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"prior\.checkpoint is not .* of the sampler but of train"
    ):
        sample(prior(), checkpoint=path, steps=2)
    assert path.read_bytes() == before


def test_training_refuses_a_checkpoint_of_the_sampler(tmp_path: Path):
    path = tmp_path / "run"
    interrupted(path, prior())
    with pytest.raises(ValueError, match="run is not a checkpoint of training, but of the sampler"):
        read_header(path)


def test_checkpoint_of_a_former_version(tmp_path: Path):
    """Which had the format of training's."""
    path = tmp_path / "run"
    interrupted(path, prior())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata | {"format": training_checkpoint.FORMAT})
    with pytest.raises(ValueError, match=r"run is of another version .* expected 'sda_fast sampl"):
        sample(prior(), (2,), checkpoint=path, steps=5)
    with pytest.raises(ValueError, match="run is not a checkpoint of training, but of the sampler"):
        read_header(path)


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was saved before stays, and no part of a file is left."""
    path, synchronise = tmp_path / "run", os.fsync

    def full(file: int) -> None:
        if path.exists():
            raise OSError(errno.ENOSPC, "")
        synchronise(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"run could not be written .No space left on device"):
        sample(prior(), (2,), steps=9, seed=1, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()

    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    expected = sample(prior(), (2,), steps=9, seed=1)
    assert torch.equal(sample(prior(), (2,), steps=9, checkpoint=path), expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/run", r"in a directory that there is, got .*missing.run: .*missing is none"),
        ("file/run", r"in a directory that there is, got .*file.run: .*file is none"),
        ("folder", "but .*folder is a directory"),
    ],
)
def test_no_place_for_a_file(name: str, says: str, tmp_path: Path):
    """Said at once, not when the first state is to be written."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    sde = prior()
    sde.eps.forward = None  # nothing is evaluated
    with pytest.raises(ValueError, match=f"checkpoint must be a file.*{says}"):
        sample(sde, steps=2, checkpoint=tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_name_that_cannot_be_written(tmp_path: Path):
    """Whose part of a file has a longer one."""
    sde = prior()
    sde.eps.forward = None  # nothing is evaluated
    with pytest.raises(OSError, match=r"aaa cannot be written \(File name too long\)"):
        sample(sde, steps=2, checkpoint=tmp_path / ("a" * 250))


def test_file_that_cannot_be_removed(tmp_path: Path):
    """It is no reason to lose the samples."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def replaces_the_folder(n: int, t: float, x: Tensor) -> None:
        if n == 5:
            folder.rmdir()
            folder.write_bytes(b"")

    expected = sample(prior(), steps=5, seed=1)
    with pytest.warns(RuntimeWarning, match="run could not be removed: Not a directory"):
        x = sample(
            prior(), steps=5, seed=1, checkpoint=folder / "run", callback=replaces_the_folder
        )
    assert torch.equal(x, expected)


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_bad_interval(every: object):
    with pytest.raises(ValueError, match="checkpoint_every must be an integer, at least 1"):
        sample(prior(), checkpoint_every=every)
