"""Writes data sets, with as many processes as asked, and goes on where it was stopped."""

__all__ = ["generate"]

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch import Generator
from tqdm import tqdm

from .recipe import Recipe, simulate_block
from .storage import PartFile
from .trajectories import Trajectories


def _work() -> None:
    """Makes a process one that works for another: on one thread, and not without it."""
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _blocks(recipe: Recipe, pending: list[int], workers: int) -> Iterator[tuple[int, np.ndarray]]:
    """Simulates blocks, in any order, at most two a worker in memory."""
    if workers == 1:
        for index in pending:
            yield index, simulate_block(recipe, index)
        return

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _work) as pool:
        todo, running = iter(pending), dict[Future[np.ndarray], int]()
        try:
            while True:
                for index in todo:
                    running[pool.submit(simulate_block, recipe, index)] = index
                    if len(running) == 2 * workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _seconds_per_block(recipe: Recipe) -> float:
    """Measures how long a block takes."""
    chain, generator = recipe.build(), Generator().manual_seed(0)
    x = chain.prior((min(recipe.block, recipe.trajectories),), generator=generator)
    x = chain.transition(x, generator=generator)  # which may compile

    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        x = chain.transition(x, generator=generator)
        count += 1
    return (time.perf_counter() - began) / count * (recipe.burn_in + recipe.length)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def generate(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> Path:
    """Simulates a data set and writes it to a file, or what is missing of it.

    Until it is complete, the file has the suffix ".part". The same recipe goes on from there, and
    comes to the same numbers as if it had never stopped.

    Arguments:
        recipe: What to simulate.
        out: The HDF5 file to write.
        workers: The number of processes that simulate.
        progress: Whether to show a progress bar.
        report: What takes the lines that say what is going to be done.

    Returns:
        The file.

    Raises:
        ValueError: There is a file already, of another recipe.
        RuntimeError: The simulation left the finite numbers.
        OSError: The disk is full. What is written is kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no directory {str(out.parent)!r} to write {out.name} into")

    if out.exists():
        there = Trajectories(out)
        if there.recipe is None:
            raise ValueError(f"{out} is a data set of {there.system!r}, which was not simulated")
        if differences := there.recipe.differences(recipe):
            raise ValueError(f"{out} is of another command: {'; '.join(differences)}")
        report(f"{out} is complete already")
        return out

    with PartFile(out, recipe) as file:
        n, length, *state = recipe.shape
        size = 4 * math.prod(recipe.shape) / 1e6
        report(f"{recipe.system}: {n} trajectories of {length} states {(*state,)}, {size:.1f} MB")
        if len(file.pending) < recipe.blocks:
            report(f"going on from {recipe.blocks - len(file.pending)} of {recipe.blocks} blocks")

        if file.pending:
            rounds = math.ceil(len(file.pending) / workers)
            seconds = rounds * _seconds_per_block(recipe)
            report(f"about {_duration(seconds)} with {workers} worker{'s' * (workers > 1)}")

        hidden = not progress or sys.stderr is None  # where there is no console
        with tqdm(total=n, disable=hidden, ncols=100, unit="trajectory") as bar:
            bar.update(n - sum(len(recipe.rows(i)) for i in file.pending))
            for index, states in _blocks(recipe, file.pending, workers):
                file.write(index, states)
                bar.update(len(states))

        file.finish()

    return out
