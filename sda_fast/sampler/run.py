"""Taking the steps of a plan."""

__all__ = ["explain", "sample"]

import operator
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import ops
from ..guidance import Pieces
from ..score import sampling
from .checkpoint import Checkpoint
from .estimate import Estimator
from .graph import unserved
from .plan import SamplingPlan, is_integer, make_plan
from .watch import Watch


def sample(
    sde: Any,
    shape: Sequence[int] = (),
    c: Tensor | None = None,
    steps: int | Sequence[float] | Tensor = 64,
    corrections: int | Sequence[int] | Callable[[float], int] = 0,
    tau: float | Sequence[float] | Callable[[float], float] = 1.0,
    *,
    x1: Tensor | None = None,
    seed: int | None = None,
    order: int = 1,
    window_batch: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    progress: bool = False,
    callback: Callable[[int, float, Tensor], Any] | None = None,
    denoise: bool = False,
    clip: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 16,
) -> Tensor:
    r"""Draws samples of a noise process, by its network or its guidance module.

    The process is one of this package's or any object with the same parts: `shape`, the event
    shape; `eps(x, t, c)`, which maps states (B, *event), a time () and the context to noise of the
    states' shape; `mu(t)` and `sigma(t)`.

    Arguments:
        sde: The noise process.
        shape: The batch shape.
        c: The context that is passed to `sde.eps`.
        steps: The number N of predictor steps, or the time grid of N + 1 times that they lead
            through, descending within [0, 1]. The state begins at the first: 1, or with `x1` any.
        corrections: The number C of Langevin corrections after each predictor step: one number,
            one for each step, or a function of the time.
        tau: The amplitude :math:`\tau` of the corrections: one number, one for each step, or a
            function of the time.
        x1: The initial noise :math:`x(1)`, with shape (*shape, *event). Drawn by default.
        seed: The seed of all randomness, an integer. By default drawn from torch's generator. The
            result has it as its attribute `seed`.
        order: The order of the predictor: 1, the paper's, or 2 or 3, which also use the estimates
            of the steps before (exponential Adams-Bashforth).
        window_batch: The number of windows, over all samples, that a composed network evaluates
            in one call; of a residual MLP that is not fused 32 or more. By default all at once, or
            as many as half of the free memory holds. Less saves memory; the samples are the same,
            bit for bit where a fused MLP serves (:func:`explain`) and to rounding elsewhere.
        dtype: The type of the state. By default that of the network's parameters. How products
            within the network are rounded is no matter of it, but of
            :func:`torch.set_float32_matmul_precision`.
        backend: "native", "reference" (pure PyTorch) or "auto", which falls back where a native
            operator cannot serve.
        progress: Whether to show a progress bar.
        callback: Called after each step with the number of the step, its time and the state,
            with shape (*shape, *event). The state is that of the sampler: clone what you keep.
            Where it returns True, that state is the result (a bool, of Python, NumPy or torch;
            anything else has no meaning). What it changes of the process's
            estimator, and of processes, networks and parameters within that, counts from then on;
            that is looked for after each call. It is called under :func:`torch.no_grad`. Times and
            the process's own levels are those of the plan.
        denoise: Whether to take :math:`\hat x` of the last state for the result, at the price of
            one more score evaluation.
        clip: A bound c of what every estimate denoises to: where :math:`|\hat x| > c` the estimate
            is replaced by the one of :math:`\hat x = \pm c`, so that no step can run away. It is in
            units of the state; for standardised ones 5 is well beyond any of them.
        checkpoint: A file that the state is written to now and then, as a whole or not at all. A
            run that finds it goes on from there, to the same bits. It is removed in the end. Only
            the same run does: the seed, unless it is left out; shapes, dtype, times, levels,
            corrections, tau, order, denoise, clip, x1 and c; the kind of device, the backend and
            what serves each part (:func:`explain`), the precision of products and autocast; and
            of the process, the estimators and the processes within it, with operators, likelihoods
            and rules of composition, the names of their classes, their parameters and buffers and
            their attributes that have public names. Of functions only the names are compared, not
            their code, and of objects that are neither modules nor of this package only what is
            data. Free to change are `window_batch`, the number of threads, `progress`, `callback`
            and `checkpoint_every`.
        checkpoint_every: The number of steps from one checkpoint to the next.

    Returns:
        The samples, with shape (*shape, *event).

    Raises:
        ValueError: An argument is out of its range, or of a shape that does not fit; the checkpoint
            is of another run, or its directory does not exist.
        TypeError: A dtype does not fit.
        RuntimeError: backend="native" and a native operator cannot serve.
        OSError: The checkpoint could not be written. What was there before is kept.
        FloatingPointError: A state is not finite. It says at which step, time and noise level, and
            which sample.

    Warns:
        RuntimeWarning: Samples are finite, but out of all proportion. It says which. Or many
            elements are held by `clip`, or the checkpoint could not be removed.
    """
    if seed is not None and not is_integer(seed, 0, 2**64 - 1):
        raise ValueError(f"seed must be a non-negative integer below 2^64, got {seed}")
    seed = None if seed is None else operator.index(seed)
    if not is_integer(checkpoint_every, 1):
        raise ValueError(f"checkpoint_every must be an integer, at least 1, got {checkpoint_every}")

    outside = copy_context()  # what a callback is run in
    with ExitStack() as stack:
        stack.enter_context(sampling())  # what is made ready for the plan serves the run
        plan = make_plan(
            sde,
            shape,
            c,
            steps,
            corrections,
            tau,
            x1=x1,
            order=order,
            window_batch=window_batch,
            dtype=dtype,
            backend=backend,
            denoise=denoise,
            clip=clip,
        )

        # where A has no vector-Jacobian product of its own, autograd finds it
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(ops.backend(plan.backend))
        stack.enter_context(sampling(plan.window_batch))

        file = None if checkpoint is None else Checkpoint(checkpoint, sde, plan, x1=x1, c=c)
        saved = None if file is None else file.load(seed)
        if saved is not None:
            start, seed, x, history = saved
        else:
            start, history = 0, []
            if seed is None:
                seed = int(torch.randint(2**63 - 1, ()))
            x = torch.empty(plan.batch.numel(), *plan.event, dtype=plan.dtype, device=plan.device)
            if x1 is None:
                ops.philox_normal_(x, seed=seed, step=0)
            else:
                x.copy_(x1.reshape(x.shape))

        if x.numel() > 0:
            run = _Run(sde, plan, c, x, seed, history)
            if callback is not None:
                run.estimate.follow()
            for n in tqdm(
                range(start + 1, plan.steps + 1),
                disable=not progress or sys.stderr is None,  # where there is no console
                ncols=88,
                initial=start,
                total=plan.steps,
            ):
                run.step(n)
                if callback is not None:
                    shaped = x.reshape(plan.batch + plan.event)
                    if _is_true(outside.run(callback, n, plan.times[n], shaped)):
                        break
                    run.renew()
                if file is not None and n % checkpoint_every == 0 and n < plan.steps:
                    file.save(n, seed, x, run.past())
            else:
                if plan.denoise:
                    run.denoise()
            run.watch.report(x, plan.clip)

        if file is not None:
            file.remove()

    result = x.reshape(plan.batch + plan.event)
    result.seed = seed  # type: ignore[attr-defined]
    return result


def _is_true(result: Any) -> bool:
    """Says whether a callback returned True, as NumPy or torch may have it."""
    if isinstance(result, Tensor):
        return result.dtype == torch.bool and result.numel() == 1 and bool(result)
    return isinstance(result, bool | np.bool_) and bool(result)


class _Run:
    """The state of a run, and the steps that change it in place.

    Samples are worked on in parts of as many as their network evaluates best at once.
    """

    def __init__(
        self,
        sde: Any,
        plan: SamplingPlan,
        c: Tensor | None,
        x: Tensor,
        seed: int,
        history: Sequence[Tensor],
    ):
        self.plan, self.x, self.seed = plan, x, seed
        self.order = plan.order
        self.estimate = Estimator(sde, plan, c, x)
        self.watch = Watch(x)
        self._split(history)

    def _split(self, history: Sequence[Tensor]) -> None:
        """Splits the samples into parts, with the estimates of the steps before, the newest
        first."""
        self.parts = self.x.split(self.estimate.at_once)
        self.history: list[list[Tensor]] = [[] for _ in self.parts]
        for eps in history:
            for part, estimates in zip(eps.split(self.estimate.at_once), self.history, strict=True):
                estimates.append(part)

    def renew(self) -> None:
        """Follows what a callback may have changed."""
        before = self.estimate.at_once
        self.estimate.renew(self.x)
        if self.estimate.at_once != before:
            self._split(self.past())

    def step(self, n: int) -> None:
        """Takes step n of the predictor, and the corrections after it."""
        plan = self.plan

        for x, history in zip(self.parts, self.history, strict=True):
            eps = self._predict(x, n, history)
            if self.order > 1:
                history.insert(0, eps)
                del history[self.order - 1 :]

        for i in range(plan.corrections[n - 1]):
            first = 0
            for x in self.parts:
                self._correct(x, n, i, first)
                first += len(x)

        self.watch(self.x, n, plan.times[n], plan.sigma[n], last=n == plan.steps)

    def past(self) -> list[Tensor]:
        """Returns the estimates of the steps before, the newest first, each of all samples: how
        many are worked on at once is not of the run."""
        return [torch.cat(estimates) for estimates in zip(*self.history, strict=True)]

    def _predict(self, x: Tensor, n: int, history: list[Tensor]) -> Tensor:
        """Takes a step of the predictor, and returns the estimate that it has taken it by, which
        a multistep one keeps: in memory of its own."""
        mu, sigma = self.plan.mu, self.plan.sigma
        r = mu[n] / mu[n - 1]
        b, *past_b = (w * (sigma[n] - r * sigma[n - 1]) for w in self.plan.weights[n - 1])
        past = history[: len(past_b)]

        estimate = self.estimate(x, n - 1)
        if isinstance(estimate, Pieces):
            mu_t, sigma_t = self.estimate.levels[n - 1]
            ops.guide_predictor_(x, *estimate, mu_t, sigma_t, r, b, past, past_b)
            copied = self.order > 1 and self.estimate.graphs
            return estimate.eps.clone() if copied else estimate.eps
        if self.order > 1:
            estimate = estimate.clone()  # it may be the network's memory, or the state's
        if past:
            ops.multistep_(x, [estimate, *past], r, [b, *past_b])
        else:
            ops.predictor_(x, estimate, r, b)
        return estimate

    def _correct(self, x: Tensor, n: int, correction: int, first_sample: int) -> None:
        """Takes a correction after step n."""
        sigma, tau = self.plan.sigma[n], self.plan.tau[n - 1]
        stream = {
            "seed": self.seed,
            "step": n,
            "correction": correction,
            "first_sample": first_sample,
        }

        estimate = self.estimate(x, n)
        if isinstance(estimate, Pieces) and self.estimate.levels[n][1] == sigma:
            mu, _ = self.estimate.levels[n]
            eps, direct, through = estimate
            ops.guide_langevin_(x, eps, direct, through, mu, sigma, tau, **stream)
        else:
            ops.langevin_(x, self.estimate.combined(estimate, n), sigma, tau, **stream)

    def denoise(self) -> None:
        """Denoises the last state."""
        n = self.plan.steps
        for x in self.parts:
            eps = self.estimate.combined(self.estimate(x, n), n)
            x.copy_(ops.denoise(x, eps, self.plan.mu[n], self.plan.sigma[n]))


def explain(
    sde: Any,
    shape: Sequence[int] = (),
    c: Tensor | None = None,
    steps: int | Sequence[float] | Tensor = 64,
    corrections: int | Sequence[int] | Callable[[float], int] = 0,
    tau: float | Sequence[float] | Callable[[float], float] = 1.0,
    *,
    x1: Tensor | None = None,
    order: int = 1,
    window_batch: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    denoise: bool = False,
    clip: float | None = None,
) -> SamplingPlan:
    """Returns the plan that :func:`sample`, given the same arguments, follows; `seed`, `progress`,
    `callback` and `checkpoint` are no part of it. Printed, it says what serves each part of the
    work and why. Where that depends on whether numbers agree it makes a few evaluations, and on
    CUDA to try whether one can be captured in a graph.

    Raises:
        ValueError: An argument is out of its range, or of a shape that does not fit.
        TypeError: A dtype does not fit.
        RuntimeError: backend="native" and a native operator cannot serve.
    """
    plan = make_plan(
        sde,
        shape,
        c,
        steps,
        corrections,
        tau,
        x1=x1,
        order=order,
        window_batch=window_batch,
        dtype=dtype,
        backend=backend,
        denoise=denoise,
        clip=clip,
    )
    return replace(plan, parts=(*plan.parts, *_graph_part(sde, plan, c)))


def _graph_part(sde: Any, plan: SamplingPlan, c: Tensor | None) -> list[tuple[str, str, str]]:
    """Says whether evaluations are replayed from a graph, where they might be."""
    reason = unserved(plan)
    if reason is not None and plan.device.type != "cuda":
        return []
    if reason is None and plan.batch.numel() > 0:
        x = torch.empty(plan.batch.numel(), *plan.event, dtype=plan.dtype, device=plan.device)
        with torch.no_grad(), ops.backend(plan.backend), sampling(plan.window_batch):
            ops.philox_normal_(x, seed=0, step=0)
            estimate = Estimator(sde, plan, c, x)
            estimate.capture(x[: estimate.at_once])
        reason = estimate.uncaptured

    if reason is None:
        return [("launches", "graph", "an evaluation is captured once and replayed")]
    return [("launches", "eager", reason)]
