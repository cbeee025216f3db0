"""The training loop."""

__all__ = ["train"]

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ..io import atomic_write, build_network, save_prior
from ..schedule import VPSDE
from .checkpoint import State, finished
from .config import Config
from .files import Files
from .loss import LEVELS, consistency_error, denoising_error, squared_error
from .metrics import Metrics
from .parallel import Group, group
from .source import Source, identify, open_source


def learning_rate(config: Config, iteration: int) -> float:
    """Returns the learning rate of a step: it rises linearly over `warmup` steps, then falls."""
    rate = config.learning_rate
    if iteration < config.warmup:
        return rate * (iteration + 1) / config.warmup

    done = (iteration - config.warmup) / max(config.iterations - config.warmup, 1)
    if config.scheduler == "linear":
        return rate * (1 - done)
    if config.scheduler == "cosine":
        return rate * (1 + math.cos(math.pi * done)) / 2
    return rate


def _iterate(
    state: State, config: Config, sde: VPSDE, source: Source, processes: Group, kernel: nn.Module
) -> Iterator[Tensor]:
    """Optimises the network, yielding the loss of every iteration on this process's share."""
    batch, generator, device = config.batch_size, state.generator, processes.device
    share = processes.share(batch)
    parameters: list[Tensor] = list(state.network.parameters())
    low = config.precision == "bfloat16"
    parts = torch.tensor(config.parts)

    def evaluate(noisy: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        if config.channels_last and noisy.ndim == 4:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return kernel(noisy, t, context)

    for x, eps, length in source.batches(state.iteration, share, generator):
        # uniform, but spread over the batch: less variance than independent times
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch

        for options in state.optimizer.param_groups:
            options["lr"] = learning_rate(config, state.iteration)

        x, eps, t, length = (y.to(device) for y in (x, eps[share], t[share], length[share]))
        if config.consistency:
            length = parts[torch.randint(len(parts), (batch,), generator=generator)]
            start = (torch.rand(batch, generator=generator) * (config.window + 1 - length)).long()
            start, length = (y[share].to(device) for y in (start, length))
            error = consistency_error(state.network, x, eps, t, start, length, sde, evaluate)
        else:
            error = squared_error(state.network, x, eps, t, length, sde, evaluate)
        loss = error.mean()
        state.optimizer.zero_grad()
        loss.backward()
        if config.clip > 0:
            nn.utils.clip_grad_norm_(parameters, config.clip)
        state.optimizer.step()

        state.iteration += 1
        decay = min(config.ema, state.iteration / (state.iteration + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(state.average.parameters()), parameters, 1 - decay)

        yield loss.detach()
        if state.iteration == config.iterations:
            return


def train(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    every: int = 2000,
    checkpoint_every: int | None = None,
    progress: bool = True,
    half: bool = False,
    device: str | torch.device | None = None,
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains a prior on a simulated system or a data set, and saves it.

    Beside the output, `out`, are kept: with the suffix ".checkpoint", what an interrupted run goes
    on from; and, instead of ".safetensors", ".best.safetensors", the prior that has validated best;
    ".config.json", the options; ".metrics.csv", the losses; and TensorBoard's, if it is installed.

    Started by `torchrun`, every process takes its share of each batch.

    Arguments:
        config: What to train.
        out: The safetensors file to write.
        resume: Whether to go on from the checkpoint. Where there is none but the prior, which is
            then complete, it is left as it is.
        every: The number of iterations between two validations.
        checkpoint_every: The number of iterations between two checkpoints, by default `every`.
        progress: Whether to show a progress bar.
        half: Whether the prior's parameters are saved in half precision.
        device: Where to compute, by default on a GPU if there is one.
        workers: The number of processes that read a data set, or 0.
        report: What takes the line that says that the prior is written, or was complete already.

    Returns:
        The record that is saved with the prior.

    Raises:
        ValueError: The data do not fit, the lengths of windows do not serve the composition, what
            there is to resume is not of this run, or an argument is out of its range.
        RuntimeError: The loss is not finite. The checkpoint before is kept.
        OSError: A file could not be written. What was there before is kept.
    """
    checkpoint_every = every if checkpoint_every is None else checkpoint_every
    for name, value in (("every", every), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    files = Files(Path(out))
    if not files.out.parent.is_dir():
        raise FileNotFoundError(
            f"no directory {str(files.out.parent)!r} to write {files.out.name} into"
        )
    if files.out.is_dir():
        raise IsADirectoryError(f"out must be a file, but {str(files.out)!r} is a directory")

    with group(device) as processes:
        processes.share(config.batch_size)
        lead = processes.rank == 0
        if resume and files.out.exists() and not files.checkpoint.exists():
            record = finished(files.out, config, identify(config))
            if lead:
                report(f"{files.out} is complete already")
            return record if lead else {}
        run = _Run(config, files, processes, workers, half)
        if resume and files.checkpoint.exists():
            run.state.load(files.checkpoint, config, run.source.identity)
        record = run(every, checkpoint_every, progress)
        if lead:
            report(f"wrote {files.out}")
        return record


class _Run:
    """A run: its data, its networks and its files."""

    def __init__(
        self, config: Config, files: Files, processes: Group, workers: int, half: bool
    ) -> None:
        self.config, self.files, self.processes, self.half = config, files, processes, half
        self.source = open_source(config, workers)
        self.held_out = self.source.held_out()
        self.arguments = config.network(self.source.state)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(self.arguments)
        self.shape = (32 if config.fields else 65, *self.source.state)
        network.composition = config.composition
        network.plan(self.shape[0])  # as whoever loads the prior will ask for

        average = copy.deepcopy(network).requires_grad_(False)
        if config.channels_last and config.fields:
            for parameter in network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        network, average = network.to(processes.device), average.to(processes.device)

        self.sde = VPSDE(network, self.shape).to(processes.device)
        self.averaged = VPSDE(average, self.shape).to(processes.device)
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.state = State(network, average, optimizer, Generator().manual_seed(config.seed + 1))

    def __call__(self, every: int, checkpoint_every: int, progress: bool) -> dict[str, Any]:
        """Makes the steps that are left."""
        config, state, lead = self.config, self.state, self.processes.rank == 0
        began = time.perf_counter() - state.seconds
        losses: list[Tensor] = []
        metrics = None

        if lead:
            self.files.clean()
            text = json.dumps(asdict(config), indent=1) + "\n"
            atomic_write(self.files.config, text.encode())
            metrics = Metrics(self.files.metrics, self.files.board, state.iteration)
        console = sys.stderr  # None where there is none
        bar = tqdm(
            total=config.iterations,
            initial=state.iteration,
            disable=not (progress and lead and console),
            ncols=100,
            mininterval=0.1 if console and console.isatty() else 60,  # a file is not to be flooded
        )
        kernel = self.processes.wrap(state.network.kernel)
        if config.compile:
            kernel = torch.compile(kernel, dynamic=False)  # type: ignore[assignment]

        try:
            steps = (
                _iterate(state, config, self.sde, self.source, self.processes, kernel)
                if state.iteration < config.iterations
                else ()
            )
            for loss in steps:
                losses.append(loss)
                bar.update()
                last = state.iteration == config.iterations
                validates = state.iteration % every == 0
                keeps = last or state.iteration % checkpoint_every == 0
                if not (validates or keeps):
                    continue

                # of all processes, loss by loss: what the checkpoint has is the same for each
                recent = self.processes.mean(torch.stack(losses)).cpu()
                state.losses = torch.cat((state.losses, recent))
                losses.clear()
                mean = float(state.losses.mean())
                if not math.isfinite(mean):
                    raise RuntimeError(
                        f"the loss is not finite at iteration {state.iteration}: lower "
                        "learning_rate"
                    )
                state.seconds = time.perf_counter() - began
                if metrics is not None and validates:
                    errors = self._validate(metrics, mean)
                    bar.set_postfix_str(f"loss {mean:.4f}, valid {errors:.4f}")
                if validates:
                    state.losses = torch.zeros(0)
                if lead and keeps:
                    if state.best == float("inf"):  # nothing there is of this run
                        self.files.forget()
                    state.save(self.files.checkpoint, config, self.source.identity)
        finally:
            bar.close()
            if metrics is not None:
                metrics.close()

        return self._finish() if lead else {}

    def _errors(self, length: int | None = None) -> list[float]:
        count = self.config.batch_size if self.config.fields else None
        return denoising_error(self.averaged, self.held_out, length, batch_size=count)

    def _validate(self, metrics: Metrics, loss: float) -> float:
        """Measures and records the validation errors, and keeps the prior if it is the best."""
        errors = self._errors()
        mean = sum(errors) / len(errors)
        state = self.state
        metrics.add(
            state.iteration,
            {
                "seconds": round(state.seconds, 1),
                "learning_rate": learning_rate(self.config, state.iteration - 1),
                "loss": loss,
                "valid": mean,
                **{f"valid at {t}": e for t, e in zip(LEVELS, errors, strict=True)},
            },
        )
        if mean < state.best:
            state.best = mean
            table = {self.config.window: errors}
            save_prior(self.files.best, state.average, self._record(table), half=self.half)
        return mean

    def _record(self, table: dict[int, list[float]]) -> dict[str, Any]:
        source = self.source
        return {
            "network": self.arguments,
            "schedule": {"class": "VPSDE", "alpha": "cos", "eta": self.sde.eta},
            "shape": list(self.shape),
            "composition": self.config.composition,
            "mean": source.mean.tolist(),
            "std": source.std.tolist(),
            "system": self.config.system,
            "data": source.identity,
            "training": {
                **asdict(self.config),
                "iteration": self.state.iteration,
                "seconds": round(self.state.seconds),
            },
            "validation": {"levels": list(LEVELS), "denoising_error": table},
        }

    def _finish(self) -> dict[str, Any]:
        """Saves the prior. Only then is the checkpoint no longer needed."""
        table = {n: self._errors(n) for n in self.config.learnt}
        if not all(math.isfinite(error) for values in table.values() for error in values):
            raise RuntimeError("the network is not finite at the end: lower learning_rate")

        record = self._record(table)
        save_prior(self.files.out, self.state.average, record, half=self.half)
        self.files.checkpoint.unlink(missing_ok=True)
        self.files.samples.unlink(missing_ok=True)  # of an older prior
        return record
