r"""Score networks: of states, of windows, and of trajectories composed from windows."""

__all__ = [
    "MCScoreNet",
    "MCScoreWrapper",
    "ScoreNet",
    "ScoreUNet",
    "fused_unet",
    "look_again",
    "others_code",
    "sampling",
]

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from . import ops
from ._autocast import widened
from ._compile import constant
from ._kept import Parts, anew, identical, keeping, told
from ._precision import matmul_precision
from .composition import Centre, Composition, Junction, Plan
from .fused import MIN_ROWS, FusedMLP, Packed, UnfusableError
from .fused_unet import FusedUNet
from .nn import ResMLP, TimeEmbedding, UNet, broadcast


@dataclass(frozen=True)
class _Evaluation:
    """How composed networks are evaluated for now."""

    window_batch: int | None
    fused: dict[nn.Module, tuple[Parts, str, FusedMLP | FusedUNet]]  # and the precision
    seen: dict[nn.Module, tuple[list[object], list[Any]]]  # their numbers, and what they were told
    others: bool = False  # whether the code of others runs

    def changed(self, network: nn.Module, parts: Parts) -> bool:
        """Says whether anything of a network may have changed since it was last asked."""
        numbers, settings = self.seen.get(network, ([], []))
        now = self.seen[network] = parts.contents(), told(parts.modules)
        return now[0] != numbers or not identical(now[1], settings)


Fused = TypeVar("Fused", FusedMLP, FusedUNet)

_evaluation: ContextVar[_Evaluation | None] = ContextVar("evaluation", default=None)


@contextmanager
def sampling(window_batch: int | None = None) -> Iterator[None]:
    """Makes composed networks look for changes of their parameters and structure only as far as
    torch counts them, for a `with` block and such blocks within it.

    Arguments:
        window_batch: The number of windows, over all samples, that a network evaluates in one
            call, by default all.
    """
    outer = _evaluation.get()
    if outer is None or outer.others:  # a sample within a sample begins anew
        outer = _Evaluation(None, {}, {})
    with _evaluated(replace(outer, window_batch=window_batch)):
        yield


@contextmanager
def others_code(runs: Any = None) -> Iterator[None]:
    """Makes composed networks look for all changes at every evaluation, as outside of
    :func:`sampling`, for a `with` block that runs what a user wrote.

    Arguments:
        runs: What is called, where it may be a network of this package: that changes nothing.
    """
    evaluation = _evaluation.get()
    ours = type(runs) in (MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet)
    if evaluation is None or evaluation.others or ours:
        yield
        return
    with _evaluated(replace(evaluation, others=True)):
        yield


@contextmanager
def _evaluated(evaluation: _Evaluation) -> Iterator[None]:
    token = _evaluation.set(evaluation)
    try:
        yield
    finally:
        _evaluation.reset(token)


def look_again() -> None:
    """Has networks look for all changes once more, within :func:`sampling`."""
    if (evaluation := _evaluation.get()) is None:
        return
    for network, (parts, *_) in list(evaluation.fused.items()):
        with anew():
            changed = evaluation.changed(network, parts)
        if changed:
            del evaluation.fused[network]


@lru_cache(maxsize=16)
@keeping()
def _plan(
    composition: str | Composition | Plan,
    order: int,
    length: int,
    device: torch.device | None,
    length_aware: bool,
    lengths: tuple[int, ...] | None,
) -> Plan:
    """Makes a plan for trajectories of `length` states and windows of 2 `order` + 1 rows, once."""
    window = 2 * order + 1

    if composition == "centre":
        composition = Centre(order)
    elif composition == "junction":
        composition = Junction(window, order)
    if isinstance(composition, str):
        raise ValueError(
            f"composition must be 'centre', 'junction', a rule or a plan, got {composition!r}"
        )

    plan = composition if isinstance(composition, Plan) else composition.plan(length)

    if plan.states != length:
        raise ValueError(
            f"the composition plan is for {plan.states} states, the trajectory has {length}"
        )
    plan = plan.padded(window)

    if not length_aware and plan.lengths != [window]:
        raise ValueError(
            f"the composition needs the scores of windows of {plan.lengths} states, the network "
            f"scores windows of {window}; build it with length_aware=True"
        )
    unknown = set() if lengths is None else set(plan.lengths) - {*lengths}
    if unknown:
        raise ValueError(
            f"the composition needs the scores of windows of {sorted(unknown)} states, the network "
            f"scores windows of {list(lengths or ())}"
        )

    return plan.to(device or plan.start.device)


@constant
def _plan_tensors(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the starts, masks and weights of a plan, constants to torch.compile."""
    plan = _plan(*arguments)
    return plan.start, plan.mask, plan.weight


def _remembered(network: nn.Module, make: Callable[[], Fused], x: Tensor) -> Fused | str:
    """Returns what evaluates a network natively on some states, within :func:`sampling` what was
    made before of the same parameters, or why nothing can."""
    evaluation = _evaluation.get()
    # where others ask for a gradient of the states, the network is what guides, and does not learn
    learns = evaluation is None or (evaluation.others and not x.requires_grad)
    if learns and torch.is_grad_enabled() and any(p.requires_grad for p in network.parameters()):
        return "its parameters require gradients"

    precision = matmul_precision(x.device)
    if evaluation is not None and network in evaluation.fused:
        parts, before, known = evaluation.fused[network]
        changed = evaluation.others and evaluation.changed(network, parts)
        if before == precision and not changed and parts.unchanged():
            return cast(Fused, known)

    if (why := ops.transformed(network.parameters())) is not None:
        return why
    try:
        if evaluation is None:
            return make()
        with nullcontext() if evaluation.others else anew():
            fused = make()
    except UnfusableError as reason:
        return str(reason)
    parts = Parts(network)
    evaluation.fused[network] = parts, precision, fused
    if evaluation.others:
        evaluation.changed(network, parts)  # from now on

    return fused


def _joined(parts: Iterable[Tensor], windows: int) -> Tensor:
    """Joins what was computed of chunks of windows, with shapes (B, n, *), one after the other:
    each may lie where the one before did."""
    parts = iter(parts)
    first = next(parts)
    if first.shape[1] == windows:
        return first
    if torch.is_grad_enabled():
        return torch.cat([first, *parts], dim=1)

    whole, end = first.new_empty(len(first), windows, *first.shape[2:]), 0
    for part in chain((first,), parts):
        end += part.shape[1]
        whole[:, end - part.shape[1] : end] = part
    return whole


class ScoreNet(nn.Module):
    r"""A noise estimator for vectors, :math:`\epsilon_\phi(x, t, c)`, by a residual MLP.

    Arguments:
        features: The number of features.
        context: The number of context features.
        embedding: The number of time embedding features.
        kwargs: Keyword arguments passed to :class:`sda_fast.nn.ResMLP`.
    """

    def __init__(self, features: int, context: int = 0, embedding: int = 16, **kwargs: Any):
        super().__init__()
        self.embedding = TimeEmbedding(embedding)
        self.network = ResMLP(features + context + embedding, features, **kwargs)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps states (*, features), times (*) and context (*, context) to noise (*, features)."""
        inputs = (x, self.embedding(t)) if c is None else (x, self.embedding(t), c)
        return self.network(torch.cat(broadcast(*inputs, ignore=1), dim=-1))


class ScoreUNet(nn.Module):
    r"""A noise estimator for fields, :math:`\epsilon_\phi(x, t, c)`, by a U-Net.

    Arguments:
        channels: The number of channels.
        context: The number of context channels.
        embedding: The number of time embedding features.
        kwargs: Keyword arguments passed to :class:`sda_fast.nn.UNet`.
    """

    def __init__(self, channels: int, context: int = 0, embedding: int = 64, **kwargs: Any):
        super().__init__()
        self.embedding = TimeEmbedding(embedding)
        self.network = UNet(channels + context, channels, embedding, **kwargs)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps fields (*, channels, H, W), times () or one for each field, and context
        (*, context, H, W) to noise (*, channels, H, W)."""
        dims = self.network.spatial + 1
        y = x if c is None else torch.cat(broadcast(x, c, ignore=dims), dim=-dims)
        y = y.reshape(-1, *y.shape[-dims:])

        fused = self.fused(y, t)
        if isinstance(fused, FusedUNet):
            with torch.no_grad():
                features = self.embedding(t.reshape(-1))
            return fused(y, features).reshape(x.shape)

        return self.network(y, self.embedding(t.reshape(-1))).reshape(x.shape)

    def fused(self, y: Tensor, t: Tensor | None = None) -> FusedUNet | str:
        """Returns what evaluates the U-Net natively, or why the module is called instead.

        Arguments:
            y: Fields with their context, with shape (B, channels + context, *).
            t: The times, with shape () or (B).
        """
        if torch.compiler.is_compiling() or y.is_meta or not ops.is_native(y, t):
            return "the native operators are not used"

        fused = _remembered(self, lambda: FusedUNet(self.network), y)
        if isinstance(fused, FusedUNet):
            return fused.unserved(y, t) or fused
        return fused


class MCScoreWrapper(nn.Module):
    """Lets a network over (B, C, L, *) score trajectories (B, L, C, *), time as a dimension.

    Arguments:
        score: The score network, for example a :class:`ScoreUNet`.
    """

    def __init__(self, score: nn.Module):
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps trajectories (B, L, C, *), a time () and context to noise (B, L, C, *)."""
        return self.score(x.transpose(1, 2), t, c).transpose(1, 2)


class MCScoreNet(nn.Module):
    r"""A noise estimator for trajectories of a Markov chain, composed from windows.

    The network `kernel` scores windows of w = 2k + 1 states. With `length_aware` it scores windows
    of 1 to w states: states beyond the length are zero, and which ones are states is w more
    features of its context. :mod:`sda_fast.composition` describes the rules of composition.

    References:
        | Score-based Data Assimilation (Rozet & Louppe, 2023)
        | https://arxiv.org/abs/2306.10574

    Arguments:
        features: The number of features (or channels) of a state.
        context: The number of context features (or channels).
        order: The order k of the Markov chain.
        composition: "centre", "junction" (windows of w states, a stride of k), a rule or a plan.
        length_aware: Whether the network scores windows of several lengths.
        lengths: The lengths that it scores if not all from 1 to w, as it was trained for.
        kwargs: Keyword arguments passed to :class:`ScoreNet`, or :class:`ScoreUNet` if they
            contain `spatial`.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        order: int = 1,
        *,
        composition: str | Composition | Plan = "centre",
        length_aware: bool = False,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__()

        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if lengths is not None and not length_aware:
            raise ValueError("lengths are only for a length_aware network")
        if not all(1 <= n <= 2 * order + 1 for n in lengths or ()):
            raise ValueError(f"lengths must be between 1 and {2 * order + 1}, got {lengths}")

        self.features = features
        self.context = context
        self.order = order
        self.length_aware = length_aware
        self.lengths = None if lengths is None else tuple(sorted(lengths))
        self.composition = composition

        build = ScoreUNet if kwargs.get("spatial", 0) > 0 else ScoreNet
        self._packed = Packed()

        mask = self.window if length_aware else 0
        self.kernel = build(features * self.window, context + mask, **kwargs)

    @property
    def window(self) -> int:
        """The number w = 2k + 1 of states that the network scores at most."""
        return 2 * self.order + 1

    def plan(self, length: int, device: torch.device | None = None) -> Plan:
        """Returns the composition plan for trajectories of `length` states.

        Raises:
            ValueError: The trajectory is too short, or the network cannot score a window's length.
        """
        return _plan(*self._planned(length, device))

    def _planned(self, length: int, device: torch.device | None) -> tuple[Any, ...]:
        return self.composition, self.order, length, device, self.length_aware, self.lengths

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps trajectories (B, L, C, *), a time () and context (context, *) to noise
        (B, L, C, *)."""
        self._check(x, c)

        if torch.compiler.is_compiling():
            start, mask, weight = _plan_tensors(*self._planned(x.shape[1], x.device))
            windows = self.kernel(ops.gather(x, start, mask), t, self._context(mask, x, c))
            return ops.compose(windows, start, weight, x.shape[1])

        plan = self.plan(x.shape[1], x.device)
        fused = self.fused(x, t, c)
        if isinstance(fused, FusedMLP):
            return fused(x, t, c, plan)

        parts = x.split(self._at_once(x))
        if len(parts) > 1:
            times = t.split(len(parts[0])) if t.ndim > 0 and len(t) == len(x) else (t,) * len(parts)
            return torch.cat([self(part, s, c) for part, s in zip(parts, times, strict=True)])

        eps = (
            widened(self.kernel(ops.gather(x, start, mask), t, self._context(mask, x, c)), x)
            for start, mask in self._chunks(plan, x)
        )

        return ops.compose(_joined(eps, len(plan)), plan.start, plan.weight, plan.states)

    def linearise(
        self, x: Tensor, t: Tensor, c: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Evaluates the network, and returns its vector-Jacobian product with respect to x.

        Arguments:
            x: Trajectories, with shape (B, L, C, *).
            t: The time, with shape ().
            c: The context, with shape (context, *).

        Returns:
            The noise, with shape (B, L, C, *), and a function from cotangents v of that shape to
            J^T v. Where windows are evaluated in chunks it evaluates each once more, so that
            torch keeps the activations of one chunk at a time.
        """
        self._check(x, c)
        with torch.no_grad():
            plan = self.plan(x.shape[1], x.device)
            fused = self.fused(x, t, c)
            if isinstance(fused, FusedMLP):
                return fused.linearise(x, t, c, plan)

        parts = x.split(self._at_once(x))
        if len(parts) == 1:
            return self._linearise(x, t, c, plan)
        pairs = [self._linearise(part, t, c, plan, last=False) for part in parts]

        def vjp(cotangent: Tensor) -> Tensor:
            each = cotangent.split(len(parts[0]))
            return torch.cat([vjp(v) for (_, vjp), v in zip(pairs, each, strict=True)])

        return torch.cat([noise for noise, _ in pairs]), vjp

    def _linearise(
        self, x: Tensor, t: Tensor, c: Tensor | None, plan: Plan, last: bool = True
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Does that by the kernel, whose graph may be kept where nothing else is evaluated."""
        chunks = list(self._chunks(plan, x))

        def evaluate(start: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            windows = ops.gather(x.detach(), start, mask)
            with torch.enable_grad():
                windows.requires_grad_(True)
                return windows, widened(self.kernel(windows, t, self._context(mask, x, c)), x)

        # the one chunk's graph is kept; of several only one is to exist at a time
        kept = evaluate(*chunks[0]) if last and len(chunks) == 1 else None

        with torch.no_grad():
            parts = ((kept or evaluate(*chunk))[1].detach() for chunk in chunks)
            eps = _joined(parts, len(plan))
            noise = ops.compose(eps, plan.start, plan.weight, plan.states)

        def pull(chunk: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
            windows, eps = kept or evaluate(*chunk)
            return torch.autograd.grad(eps, windows, v, retain_graph=kept is not None)[0]

        def vjp(cotangent: Tensor) -> Tensor:
            with torch.no_grad():
                pulled = ops.gather(cotangent, plan.start, plan.weight)
                each = pulled.tensor_split(len(chunks), dim=1)
                gradients = _joined(map(pull, chunks, each), len(plan))
                return ops.compose(gradients, plan.start, plan.mask, plan.states)

        return noise, vjp

    def prepare(self, x: Tensor, times: Tensor, c: Tensor | None = None) -> None:
        """Computes at once what evaluations at many times need of the time alone, within
        :func:`sampling` and on a CPU: elsewhere a captured evaluation reads its time from memory.

        Arguments:
            x: States that are going to be evaluated, with shape (B, L, C, *).
            times: The times, with shape (N).
            c: The context, with shape (context, *).
        """
        fused = self.fused(x, c=c) if x.is_cpu else None
        if isinstance(fused, FusedMLP):
            fused.prepare(times, c)

    def _check(self, x: Tensor, c: Tensor | None) -> None:
        """Checks trajectories and context."""
        if x.ndim < 3 or x.shape[2] != self.features:
            raise ValueError(
                f"x must have shape (B, L, {self.features}, *), got {tuple(x.shape)}: a network of "
                f"{self.features} features scores trajectories with shape (L, {self.features}, *)"
            )
        if c is None and self.context > 0:
            raise ValueError(f"c must be given: the network takes {self.context} context features")
        if c is not None and c.shape[: c.ndim - (x.ndim - 3)][-1:] != (self.context,):
            raise ValueError(
                f"c must have {self.context} context features, as the network takes, got shape "
                f"{tuple(c.shape)}"
            )

    def windows_at_once(self, limit: int) -> str:
        """Says how many windows its kernel evaluates in one call for a `window_batch`."""
        bound = self._least == 1 or limit >= 2 * self._least
        return f"at most {limit}" if bound else f"about {max(limit, self._least)}"

    @property
    def _least(self) -> int:
        """The least number of windows for a call."""
        return MIN_ROWS if isinstance(self.kernel, ScoreNet) else 1

    def _at_once(self, x: Tensor) -> int:
        """Returns of how many samples the kernel evaluates windows in one call."""
        evaluation = _evaluation.get()
        limit = evaluation.window_batch if evaluation is not None else None
        return max(len(x) if limit is None else min(len(x), max(limit, self._least)), 1)

    def _chunks(self, plan: Plan, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the starts and masks of the windows that the kernel evaluates in one call."""
        evaluation = _evaluation.get()
        limit = evaluation.window_batch if evaluation is not None else None
        batch = max(len(x), 1)
        most = len(plan) if limit is None else max(limit // batch, 1)
        return plan.chunks(most, least=-(-self._least // batch))

    def fused(self, x: Tensor, t: Tensor | None = None, c: Tensor | None = None) -> FusedMLP | str:
        """Returns what evaluates the network natively, or why its kernel is called instead."""
        if not ops.is_native(x, t, c):
            return "the native operators are not used"
        if type(self.kernel) is not ScoreNet:
            return f"its kernel is a {type(self.kernel).__name__}"

        fused = _remembered(self, lambda: FusedMLP(self, self._packed), x)
        if isinstance(fused, FusedMLP):
            return fused.unserved(x, t, c) or fused
        return fused

    def samples_at_once(self, x: Tensor, c: Tensor | None = None) -> int:
        """Returns how many samples the network evaluates best at once where a gradient follows:
        as many as it keeps the activations of, so that it need not compute them again."""
        fused = self.fused(x, c=c)
        if isinstance(fused, str):
            return len(x)
        windows = len(self.plan(x.shape[1], x.device))

        # and enough for every thread to have its share
        kept = ops.kept_rows(fused.widths, fused.bfloat16, x.device)
        return max(kept, 64 * torch.get_num_threads()) // windows

    def _context(self, mask: Tensor, x: Tensor, c: Tensor | None) -> Tensor | None:
        """Appends the mask of the windows to the context."""
        if not self.length_aware:
            return c

        space = x.shape[3:]
        rows = mask.to(x.dtype).reshape(*mask.shape, *(1,) * len(space)).expand(-1, -1, *space)
        if c is None:
            return rows
        dims = len(space) + 1

        return torch.cat(broadcast(c, rows, ignore=dims), dim=-dims)


def fused_unet(network: Any, x: Tensor) -> FusedUNet | str | None:
    """Returns what evaluates the U-Net within a network natively, or why the module is called, or
    None if there is none.

    Arguments:
        network: A network of trajectories or of windows.
        x: Trajectories, with shape (B, L, C, *), of any B.
    """
    modules: Iterable[Any] = network.modules() if isinstance(network, nn.Module) else ()
    unet = next((module for module in modules if isinstance(module, ScoreUNet)), None)
    if unet is None:
        return None
    if isinstance(network, MCScoreWrapper):
        x = x.transpose(1, 2)
    space = x.shape[x.ndim - unet.network.spatial :]
    with torch.no_grad(), sampling():
        return unet.fused(x.new_empty(0, unet.network.in_channels, *space))
