"""Training: the loss falls, and an interrupted run goes on as if it had not been."""

import csv
import errno
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from sda_fast import VPSDE, Junction, MCScoreNet, load_prior
from sda_fast.io import build_network, read_record, save_prior
from sda_fast.training import LEVELS, Config, checkpoint, denoising_error, loop, source, train
from sda_fast.training.loss import consistency_error, cut

TINY = Config(
    order=1,
    width=8,
    depth=1,
    embedding=4,
    iterations=30,
    batch_size=8,
    trajectories=10,
    states=16,
    seed=3,
)


@pytest.fixture(autouse=True)
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Has torch.compile trace, without a C++ compiler and its half a minute; returns its calls."""
    calls: list[Any] = []
    trace = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: calls.append(options) or trace(f, **options)
    )
    return calls


def run(config: Config, out: Path, **kwargs: Any) -> dict[str, Tensor]:
    train(config, out, progress=False, **kwargs)
    return load_prior(out, length=9).eps.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Makes the run stop in the middle of an iteration: as many windows have been drawn."""
    count = 0
    draw = source.draw_windows

    def counted(data: Tensor, batch: int, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        if batch == TINY.batch_size:  # not those of the validation
            count += 1
            if count > after:
                raise KeyboardInterrupt
        return draw(data, batch, *args, **kwargs)

    monkeypatch.setattr(source, "draw_windows", counted)


@pytest.mark.parametrize("progress", [False, True])
def test_progress_without_a_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool
):
    monkeypatch.setattr(sys, "stderr", None)
    train(TINY, tmp_path / "prior", progress=progress)


def test_loss_falls(tmp_path: Path):
    """Below 1, the error of knowing nothing, at every level of noise; most at the highest."""
    config = replace(TINY, width=32, iterations=400, batch_size=64, learning_rate=3e-3, ema=0.95)
    record = train(config, tmp_path / "prior", progress=False)
    (errors,) = record["validation"]["denoising_error"].values()
    assert len(errors) == len(LEVELS)
    assert max(errors) < 1.05
    assert sum(errors) / len(errors) < 0.5
    assert errors[-1] < 0.3


def test_a_run_is_a_function_of_its_configuration(tmp_path: Path):
    """Whatever torch's own generator does, which is left alone."""
    first = run(TINY, tmp_path / "a")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(TINY, tmp_path / "b", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, load_prior(tmp_path / "b", length=9).eps.state_dict())
    assert not same(first, run(replace(TINY, seed=4), tmp_path / "c"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_aware": True},
        {"length_aware": True, "consistency": True},
        {"compile": True},
    ],
    ids=["plain", "length-aware", "consistency", "compiled"],
)
@pytest.mark.parametrize("after", [10, 14, 29])
def test_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, options: dict[str, bool]
):
    """Stopped between checkpoints and resumed, it gives the same bits as without a stop."""
    config = replace(TINY, **options)
    expected = run(config, tmp_path / "whole", every=10)

    out = tmp_path / "prior"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            run(config, out, every=10)
    assert not out.exists()
    header = checkpoint.read_header(out.with_name("prior.checkpoint"))
    assert header["iteration"] == after // 10 * 10

    assert same(run(config, out, every=10, resume=True), expected)
    kept = {p.name.replace("whole", "prior") for p in tmp_path.iterdir()} - {"prior.tensorboard"}
    assert kept == {"prior", "prior.best.safetensors", "prior.config.json", "prior.metrics.csv"}
    whole = load_prior(tmp_path / "whole.best.safetensors", length=9).eps.state_dict()
    best = load_prior(tmp_path / "prior.best.safetensors", length=9).eps.state_dict()
    assert same(best, whole)


def test_compiled(tmp_path: Path, compilations: list[Any]):
    """Changes what is learnt by rounding alone."""
    compiled = run(replace(TINY, compile=True), tmp_path / "compiled")
    assert compilations == [{"dynamic": False}]
    for name, value in run(TINY, tmp_path / "plain").items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-4)


def test_without_resume_a_checkpoint_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "prior"
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, out, every=10)
    assert same(run(TINY, out), run(TINY, tmp_path / "whole"))


def test_resume_without_a_checkpoint(tmp_path: Path):
    assert same(run(TINY, tmp_path / "a", resume=True), run(TINY, tmp_path / "b"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        save({"x": torch.zeros(2)}),
        save({"x": torch.zeros(2)}, {"format": checkpoint.FORMAT})[:-4],
    ],
    ids=["empty", "garbage", "other", "truncated"],
)
def test_bad_checkpoint(tmp_path: Path, content: bytes):
    (tmp_path / "prior.checkpoint").write_bytes(content)
    with pytest.raises(ValueError, match=r"prior\.checkpoint is not a checkpoint of this program"):
        run(TINY, tmp_path / "prior", resume=True)
    assert (tmp_path / "prior.checkpoint").read_bytes() == content


def test_checkpoint_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the configuration says and what the tensors are may differ only in a damaged file."""
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path / "prior", every=10)
    path = tmp_path / "prior.checkpoint"
    with checkpoint.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["network.kernel.network.0.weight"] = torch.zeros(2, 2)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"is of another architecture: .*size mismatch"):
        run(TINY, tmp_path / "prior", resume=True)


def test_checkpoint_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path / "prior", every=10)
    message = r"checkpoint of another run: width 8 \(now 16\), seed 3 \(now 4\)"
    with pytest.raises(ValueError, match=message):
        run(replace(TINY, width=16, seed=4), tmp_path / "prior", resume=True)


def test_record(tmp_path: Path):
    """What a prior remembers is enough to make it again."""
    config = replace(TINY, length_aware=True, lengths=(3, 3, 2))
    out = tmp_path / "prior"
    record = train(config, out, progress=False)
    kept = read_record(out)

    assert kept["system"] == "lorenz63"
    assert kept["shape"] == [65, 3]
    assert kept["validation"]["levels"] == list(LEVELS)
    assert kept["validation"]["denoising_error"].keys() == {"2", "3"}
    assert kept["training"]["iterations"] == 30
    again = {k: v for k, v in kept["training"].items() if k not in ("seconds", "iteration")}
    assert Config.of(again) == config
    assert Config.of(json.loads((tmp_path / "prior.config.json").read_text())) == config
    assert (kept["mean"], kept["std"]) == ([0, 0, 25], pytest.approx([8, 9, 8.6]))
    assert record["network"] == kept["network"]

    sde = load_prior(out, length=9, composition="junction")
    assert sde.eps.plan(9).lengths == [2, 3]
    with pytest.raises(ValueError, match=r"windows of \[1\] states, .* scores windows of \[2, 3\]"):
        load_prior(out, length=9, composition=Junction(3, 2))


@pytest.mark.parametrize("ema", [0.5, 0.95])
def test_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float):
    """What is saved is the average of the weights, a <- d_i a + (1 - d_i) w_i, where the decay
    d_i = min(ema, i / (i + 10)) grows to `ema`; the learning rate falls linearly to zero."""
    seen: list[dict[str, Tensor]] = []
    rates: list[float] = []
    iterate = loop._iterate

    def weights(state: Any) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in state.network.named_parameters()}

    def watched(state: Any, *args: Any) -> Iterator[Tensor]:
        seen.append(weights(state))
        for loss in iterate(state, *args):
            seen.append(weights(state))
            rates.append(state.optimizer.param_groups[0]["lr"])
            yield loss

    monkeypatch.setattr(loop, "_iterate", watched)
    result = run(replace(TINY, ema=ema), tmp_path / "prior")

    average = seen[0]
    for i, after in enumerate(seen[1:], start=1):
        decay = min(ema, i / (i + 10))
        average = {k: decay * average[k] + (1 - decay) * after[k] for k in average}
    for name, value in average.items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(result[name], seen[-1][name])

    assert rates == pytest.approx([1e-3 * (1 - i / 30) for i in range(30)])


def test_what_is_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows of the lengths asked for, equally often, zero beyond them, at times that cover
    [0, 1] evenly."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    squared_error = loop.squared_error

    def watched(network: MCScoreNet, *args: Any) -> Tensor:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if network.kernel.training and len(inputs[0]) == 64:
                seen.append(inputs)

        handle = network.kernel.register_forward_pre_hook(hook)
        loss = squared_error(network, *args)
        handle.remove()
        return loss

    monkeypatch.setattr(loop, "squared_error", watched)
    config = replace(TINY, batch_size=64, length_aware=True, lengths=(3, 1, 3, 2))
    train(config, tmp_path / "prior", progress=False)

    assert len(seen) == config.iterations
    count = torch.zeros(4)
    for x, t, mask in seen:
        assert torch.equal((64 * t).floor(), torch.arange(64.0))
        length = mask.sum(1).long()
        assert torch.equal(mask, (torch.arange(3) < length[:, None]).float())
        valid = mask[:, :, None].expand(-1, -1, 3).flatten(1)
        assert torch.equal(x != 0, valid.bool())
        count += torch.bincount(length, minlength=4)
    n, p = 64 * 30, torch.tensor([0, 0.25, 0.25, 0.5])
    assert ((count - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()


def test_what_is_learnt_with_consistency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whole windows, and of each a part of a length asked for, at every place equally often."""
    seen: list[tuple[Tensor, Tensor]] = []
    consistency_error = loop.consistency_error

    def watched(network: MCScoreNet, x: Tensor, *args: Any) -> Tensor:
        assert x.shape == (64, 5, 3)
        seen.append((args[2], args[3]))
        return consistency_error(network, x, *args)

    monkeypatch.setattr(loop, "consistency_error", watched)
    options = {"order": 2, "length_aware": True, "consistency": True, "lengths": (3, 3, 4)}
    record = train(replace(TINY, batch_size=64, **options), tmp_path / "prior", progress=False)
    assert record["validation"]["denoising_error"].keys() == {3, 4, 5}
    assert record["network"]["lengths"] == [3, 4, 5]

    count = torch.zeros(3, 5)
    for start, length in seen:
        count.index_put_((start, length), torch.ones(64), accumulate=True)
    n, p = 64 * 30, torch.zeros(3, 5)
    p[:, 3], p[:2, 4] = 2 / 9, 1 / 6
    assert ((count - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()


class Gaussian(nn.Module):
    """The exact score of windows (w, 1) of a Gaussian chain, told which are states; that of shorter
    windows than 4 is scaled."""

    def __init__(self, sde: VPSDE, scale: float):
        super().__init__()
        self.sde, self.scale = sde, scale

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        mu, sigma = (f(t)[:, None, None] for f in (self.sde.mu, self.sde.sigma))
        lag = torch.arange(4)
        covariance = 0.9 ** (lag[:, None] - lag).abs()
        both = mask[:, :, None] * mask[:, None, :]
        noisy = (mu**2 * covariance + sigma**2 * torch.eye(4)) * both + torch.diag_embed(1 - mask)
        eps = sigma[..., 0] * torch.linalg.solve(noisy, x)
        return eps * torch.where(mask.sum(dim=1, keepdim=True) < 4, self.scale, 1.0)


def test_consistency_is_least_where_the_score_is_exact():
    """Of parts, too, though they only ever see the estimates of wholes."""
    generator = torch.Generator().manual_seed(0)
    n = 50_000
    lag = torch.arange(4)
    factor = torch.linalg.cholesky(0.9 ** (lag[:, None] - lag).abs())
    x = (torch.randn(n, 4, generator=generator) @ factor.T)[..., None]
    eps = torch.randn(x.shape, generator=generator)
    t = torch.full((n,), 0.3)
    length = torch.randint(1, 4, (n,), generator=generator)
    start = (torch.rand(n, generator=generator) * (5 - length)).long()

    network = MCScoreNet(1, order=1, length_aware=True)
    sde = VPSDE(network, (4, 1))
    error = torch.stack(
        [
            consistency_error(network, x, eps, t, start, length, sde, Gaussian(sde, scale))
            for scale in (0.9, 1.0, 1.1)
        ]
    )
    whole, part = error[:, :n], error[:, n:]
    assert torch.equal(whole[0], whole[1])
    for other in (0, 2):
        gain = part[other] - part[1]
        assert gain.mean() > 5 * gain.std() / n**0.5


def test_cut():
    x = torch.arange(10.0).reshape(2, 5)
    expected = [[2.0, 3, 4, 4, 4], [5, 6, 7, 8, 9]]
    assert torch.equal(cut(x, torch.tensor([2, 0])), torch.tensor(expected))


def test_consistency_of_one_window():
    """Its loss is that of the whole against the noise and of the part against the whole, whose
    gradient is not taken."""
    torch.manual_seed(0)
    network = MCScoreNet(2, order=1, length_aware=True, hidden_features=[8], embedding=4)
    sde = VPSDE(network, (3, 2))
    x, eps, t = torch.randn(1, 3, 2), torch.randn(1, 3, 2), torch.tensor([0.3])
    error = consistency_error(network, x, eps, t, torch.tensor([1]), torch.tensor([2]), sde)

    noisy = sde.mu(t) * x + sde.sigma(t) * eps
    whole = network.kernel(noisy.flatten(1), t, torch.ones(1, 3))
    cut = torch.cat((noisy[:, 1:], torch.zeros(1, 1, 2)), dim=1)
    part = network.kernel(cut.flatten(1), t, torch.tensor([[1.0, 1.0, 0.0]]))
    expected = torch.stack(
        (
            (whole - eps.flatten(1)).square().mean(),
            (part[:, :4] - whole[:, 2:].detach()).square().mean(),
        )
    )
    torch.testing.assert_close(error, expected)
    parameters = list(network.parameters())
    for a, b in zip(
        torch.autograd.grad(error.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_diverging_run(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"loss is not finite at iteration 10: lower learning"):
        run(replace(TINY, learning_rate=1e30), tmp_path / "prior", every=10)
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize("resumes", [False, True])
def test_diverging_run_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumes: bool
):
    """It is of the last iterations whose loss and weights were finite."""
    train(TINY, tmp_path / "whole", progress=False, every=10)
    iterate = loop._iterate

    def diverging(state: Any, *args: Any) -> Iterator[Tensor]:
        for loss in iterate(state, *args):
            if state.iteration == 14:
                next(state.network.parameters()).data[0] = math.nan
            yield loss

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_iterate", diverging)
        with pytest.raises(RuntimeError, match="not finite at iteration 20"):
            run(TINY, tmp_path / "prior", every=10)
    assert checkpoint.read_header(tmp_path / "prior.checkpoint")["iteration"] == 10
    if resumes:
        whole = load_prior(tmp_path / "whole", length=9).eps.state_dict()
        assert same(run(TINY, tmp_path / "prior", every=10, resume=True), whole)


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the loss, which is of before the step, still is."""
    iterate = loop._iterate

    def diverging(state: Any, *args: Any) -> Iterator[Tensor]:
        for loss in iterate(state, *args):
            if state.iteration == 20:
                next(state.network.parameters()).data[0] = math.inf
            yield loss

    monkeypatch.setattr(loop, "_iterate", diverging)
    with pytest.raises(RuntimeError, match="the weights are not finite at iteration 20"):
        run(TINY, tmp_path / "prior", every=10)
    assert checkpoint.read_header(tmp_path / "prior.checkpoint")["iteration"] == 10


@pytest.mark.parametrize(
    ("name", "kept"), [("prior.checkpoint", 20), ("prior", 30), ("prior.metrics.csv", 20)]
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kept: int):
    """Whichever file finds no room, the run goes on from the checkpoint before."""
    whole = run(TINY, tmp_path / "whole", every=10)
    out = tmp_path / "prior"
    fsync, seen = os.fsync, []

    def full(descriptor: int) -> None:
        written = os.readlink(f"/proc/self/fd/{descriptor}")
        if Path(written).name == f".{name}.{os.getpid()}.part":
            seen.append(written)
            if name == "prior" or len(seen) == 3:
                raise OSError(errno.ENOSPC, "no space")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=rf"{name} could not be written \(No space left"):
            run(TINY, out, every=10)
    assert checkpoint.read_header(tmp_path / "prior.checkpoint")["iteration"] == kept
    assert not list(tmp_path.glob(".*"))
    assert same(run(TINY, out, every=10, resume=True), whole)


def test_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A row for each validation; a resumed run forgets those that it makes again."""

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / name).open(newline="") as file:
            table = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k != "seconds"} for row in table]

    run(TINY, tmp_path / "whole", every=5, checkpoint_every=10)
    with monkeypatch.context() as patch:
        interrupt(patch, 17)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path / "prior", every=5, checkpoint_every=10)
    assert [int(row["iteration"]) for row in rows("prior.metrics.csv")] == [5, 10, 15]
    run(TINY, tmp_path / "prior", every=5, checkpoint_every=10, resume=True)

    assert rows("prior.metrics.csv") == rows("whole.metrics.csv")
    (*_, last) = rows("whole.metrics.csv")
    record = read_record(tmp_path / "whole")
    (errors,) = record["validation"]["denoising_error"].values()
    assert [float(last[f"valid at {t}"]) for t in LEVELS] == errors
    best = min(float(row["valid"]) for row in rows("whole.metrics.csv"))
    (errors,) = read_record(tmp_path / "whole.best.safetensors")["validation"][
        "denoising_error"
    ].values()
    assert sum(errors) / len(errors) == pytest.approx(best, rel=1e-12)


def test_metrics_do_not_depend_on_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss of a row is the mean since the row before, wherever the run was resumed."""

    def losses(name: str) -> list[str]:
        with (tmp_path / f"{name}.metrics.csv").open(newline="") as file:
            return [row["loss"] for row in csv.DictReader(file)]

    run(TINY, tmp_path / "whole", every=15)
    with monkeypatch.context() as patch:
        interrupt(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path / "prior", every=15, checkpoint_every=4)
    run(TINY, tmp_path / "prior", every=15, checkpoint_every=4, resume=True)
    assert losses("prior") == losses("whole")
    assert len(losses("whole")) == 2


def test_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard")
    run(TINY, tmp_path / "prior", every=10)
    assert list((tmp_path / "prior.tensorboard").iterdir())


def test_resume_of_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after the last step, before the prior was written."""
    whole = run(TINY, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_prior", lambda *_, **__: sys.exit())
        with pytest.raises(SystemExit):
            run(TINY, tmp_path / "prior")
    assert same(run(TINY, tmp_path / "prior", resume=True), whole)


def test_resume_of_a_complete_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The prior is left as it is, and nothing is simulated; it is not taken for another's."""
    out = tmp_path / "prior"
    record = train(TINY, out, progress=False)
    assert capsys.readouterr().out == f"wrote {out}\n"
    before = out.read_bytes()

    monkeypatch.setattr(loop, "open_source", None)
    again = train(TINY, out, progress=False, resume=True)
    assert again == json.loads(json.dumps(record))
    assert capsys.readouterr().out == f"{out} is complete already\n"

    message = r"prior is the prior of another run: width 8 \(now 16\), seed 3 \(now 4\)"
    with pytest.raises(ValueError, match=message):
        train(replace(TINY, width=16, seed=4), out, progress=False, resume=True)
    assert out.read_bytes() == before


def test_resume_where_there_is_another_prior(tmp_path: Path):
    """One that a user has saved, or no prior at all."""
    out = tmp_path / "prior"
    network = {"features": 3, "order": 1, "hidden_features": [8]}
    schedule = {"class": "VPSDE", "alpha": "cos", "eta": 1e-3}
    record = {"network": network, "schedule": schedule, "shape": [9, 3]}
    save_prior(out, build_network(network), record)
    with pytest.raises(ValueError, match="is a prior that does not say how it was trained"):
        run(TINY, out, resume=True)
    out.write_bytes(b"notes")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        run(TINY, out, resume=True)
    assert out.read_bytes() == b"notes"


def test_nothing_of_an_older_run_is_left(tmp_path: Path):
    """Beside a prior that no validation was made for; a new prior's picture is to be drawn."""
    out = tmp_path / "prior.safetensors"
    run(TINY, out, every=10)
    (tmp_path / "prior.samples.png").touch()
    run(replace(TINY, seed=5), out)
    kept = {path.name for path in tmp_path.iterdir()} - {"prior.tensorboard"}
    assert kept == {out.name, "prior.config.json"}


def test_what_an_older_run_recorded_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its checkpoint and its rows go together, when there is a new checkpoint."""
    out = tmp_path / "prior"
    run(TINY, out, every=5)
    other = replace(TINY, seed=5)
    with monkeypatch.context() as patch:
        interrupt(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            run(other, out, every=20, checkpoint_every=10)
    run(other, out, every=20, checkpoint_every=10, resume=True)
    with (tmp_path / "prior.metrics.csv").open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["20"]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_learning_rate(scheduler: str):
    """Warmed up linearly, then (1 - s), (1 + cos pi s) / 2 or 1 of its greatest value, where s is
    the share of the steps that are made."""
    config = Config(iterations=110, warmup=10, scheduler=scheduler, learning_rate=2.0)
    rates = [loop.learning_rate(config, i) for i in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    fall = {
        "linear": [2 * (1 - s / 100) for s in range(100)],
        "cosine": [1 + math.cos(math.pi * s / 100) for s in range(100)],
        "constant": [2.0] * 100,
    }
    assert rates[10:] == pytest.approx(fall[scheduler])


def test_clipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No step sees a gradient of a greater norm."""
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *args: Any) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run(TINY, tmp_path / "free")
    assert max(norms) > 0.1
    norms.clear()
    run(replace(TINY, clip=0.1), tmp_path / "clipped")
    assert max(norms) <= 0.1 * (1 + 1e-5)


def test_missing_directory(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere"):
        run(TINY, tmp_path / "nowhere" / "prior")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 2, "length_aware": True, "lengths": (5, 4), "composition": "junction"}, "3"),
        ({"order": 2, "length_aware": True, "lengths": (1, 2)}, "5"),
        ({"order": 33, "states": 80}, "at least 2k"),
    ],
    ids=["junction", "centre", "long"],
)
def test_composition_that_is_not_served(tmp_path: Path, options: dict[str, Any], message: str):
    """Is refused before anything is learnt: nobody could load the prior as it says."""
    message = message if "at" in message else rf"windows of \[{message}\] states, the network"
    with pytest.raises(ValueError, match=message):
        train(replace(TINY, **options), tmp_path / "prior", progress=False)
    assert not any(tmp_path.iterdir())


def test_directory_as_output(tmp_path: Path):
    """Is refused before anything is done."""
    (tmp_path / "prior").mkdir()
    for resume in (False, True):
        with pytest.raises(IsADirectoryError, match=r"out must be a file, but '.*prior' is a dir"):
            train(TINY, tmp_path / "prior", progress=False, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


# The denoising error


@pytest.mark.parametrize("length", [None, 5, 3, 1])
def test_denoising_error(length: int | None):
    """The mean over valid states of (eps_phi - eps)^2: of an estimate that is 0, it is 1; of one
    that is x / sigma, (mu / sigma)^2 E[x^2]."""

    class Kernel(nn.Module):
        def __init__(self, answer: str):
            super().__init__()
            self.answer = answer

        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            n = length or 5
            assert (c == (torch.arange(5) < n)).all()
            assert not x[:, 3 * n :].any()  # no state beyond the length is seen
            if self.answer == "zero":
                return torch.full_like(x, 1e3).where(torch.arange(15) >= 3 * n, 0.0)
            return x / sde.sigma(t)[:, None]

    network = MCScoreNet(3, order=2, length_aware=True, hidden_features=[4])
    sde = VPSDE(network, (9, 3))
    windows = 0.5 * torch.randn(20000, 5, 3)

    network.kernel = Kernel("zero")
    errors = denoising_error(sde, windows, length, levels=(0.1, 0.5))
    assert errors == pytest.approx([1.0, 1.0], abs=5 * math.sqrt(2 / (20000 * 3)))

    network.kernel = Kernel("clean")
    errors = denoising_error(sde, windows, length, levels=(0.1, 0.5))
    for t, error in zip((0.1, 0.5), errors, strict=True):
        mu, sigma = oracles.levels("VPSDE", "cos", t)
        assert error == pytest.approx((mu / sigma) ** 2 / 4, rel=0.05)
