"""What is kept of tensors from call to call."""

__all__ = [
    "Parts",
    "Versions",
    "anew",
    "identical",
    "keeping",
    "numbers",
    "settled",
    "told",
    "version",
]

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from . import _native
from ._calls import hooked


@contextmanager
def keeping() -> Iterator[None]:
    """Makes tensors that are kept: without gradients of their own, and not in inference mode, whose
    tensors no gradient that is asked for later could use."""
    with torch.inference_mode(False), torch.no_grad():
        yield


_anew: ContextVar[bool] = ContextVar("sda_fast.anew", default=False)


@contextmanager
def anew() -> Iterator[None]:
    """Keeps nothing of tensors whose changes may have gone unseen."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)


def version(x: Tensor) -> object:
    """Returns what differs after a tensor changed in place.

    Torch's count leaves out changes through `x.data`, as averages of weights are put into a network
    and taken out of it. On a CPU it is therefore a number of the contents. Elsewhere, where that
    would be waited for, it is the count, and what is equal to nothing where torch has none (in
    inference mode) or within :func:`anew`.
    """
    known = _native.fingerprint(x) if x.is_cpu else None
    if known is not None:
        return known
    return object() if x.is_inference() or _anew.get() else x._version


_TORCHS = frozenset(vars(nn.Module()))  # what torch itself keeps in a module


@lru_cache(maxsize=1024)
def _is_others(kind: Any) -> bool:
    """Says whether a class is neither of this package or torch, nor derived from one of ours."""
    packages = {k.__module__.partition(".")[0] for k in kind.__mro__}
    return "sda_fast" not in packages and kind.__module__.partition(".")[0] != "torch"


def _attributes(thing: Any) -> Iterator[Any]:
    """Yields what a thing has in attributes with public names, of others' classes also in private
    ones (ours keep there what they made), and what is in lists and the like of those."""
    others = _is_others(thing.__class__)
    for name, value in getattr(thing, "__dict__", {}).items():
        if name not in _TORCHS and (others or name[0] != "_"):
            yield from _within(value) if others else (value,)


def _within(value: Any, depth: int = 4) -> Iterator[Any]:
    yield value
    if depth > 0 and isinstance(value, dict | list | tuple | set):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _within(part, depth - 1)


def told(things: Sequence[Any]) -> list[Any]:
    """Returns what things were told, their classes and attributes, and of modules among them what
    their classes run and whether hooks are on them: what is :func:`identical` unless it was told
    anew."""
    values = list(chain.from_iterable(map(_attributes, things)))
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    forwards = [type(module).forward for module in modules]
    kinds = filter(_is_others, dict.fromkeys(map(type, modules)))
    parts = chain.from_iterable(vars(k).values() for kind in kinds for k in kind.__mro__[:-1])
    return [*values, *map(type, things), *forwards, *map(hooked, modules), *parts]


_CONSTANTS = (bool, int, float, str, tuple, type, type(None), torch.dtype, torch.device, Tensor)


def settled(things: Sequence[Any]) -> bool:
    """Says whether things have no attributes but constants, and tensors: what is :func:`told` and
    their :func:`numbers` then say all of them, and keep nothing alive but that."""
    return all(isinstance(x, _CONSTANTS) for x in chain.from_iterable(map(_attributes, things)))


def numbers(things: Sequence[Any]) -> list[object]:
    """Returns what differs after a number changed in place in a buffer or an attribute of others'
    things."""
    others = [thing for thing in things if _is_others(thing.__class__)]
    buffers = (getattr(thing, "_buffers", {}).values() for thing in others)
    values = chain(chain.from_iterable(buffers), chain.from_iterable(map(_attributes, others)))
    return [version(x) for x in values if isinstance(x, Tensor)]


def identical(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Says whether two lists are of the same things."""
    return len(a) == len(b) and not any(map(is_not, a, b))


class Versions:
    """The versions of some tensors: they differ after one is replaced, moved or changed in place.

    Arguments:
        tensors: The tensors.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._tensors = list(tensors)
        # held, as what takes the place of one may get its place in memory
        self._memory = [x.detach() for x in self._tensors]
        self._versions = [(_place(x), version(x)) for x in self._tensors]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Versions)
            and identical(self._tensors, other._tensors)
            and self._versions == other._versions
        )


class Parts:
    """The modules, parameters and buffers of some modules as they are at a time.

    Arguments:
        modules: The modules.
    """

    def __init__(self, *modules: nn.Module):
        self.modules = list(dict.fromkeys(chain.from_iterable(map(nn.Module.modules, modules))))
        self._lists: list[dict[str, Any]] = []
        self._tensors: list[Tensor] = []
        self._counted: list[Tensor] = []
        for module in self.modules:
            parameters = [p for p in module._parameters.values() if p is not None]
            buffers = [x for x in module._buffers.values() if x is not None]
            self._tensors += parameters + buffers
            self._counted += [p for p in parameters if not p.is_inference()]
            self._lists += filter(None, (module._modules, module._parameters, module._buffers))

        # held, as what takes the place of one may get its id, or its place in memory
        self._things = list(self._listed()), [x.detach() for x in self._tensors]
        self._before = self._now()

    def unchanged(self) -> bool:
        """Says whether they are the same now, as far as torch counts changes, and lie where they
        did."""
        return self._now() == self._before

    def contents(self) -> list[object]:
        """Returns what differs after a number in their parameters and buffers changed."""
        return list(map(version, self._tensors))

    def _now(self) -> tuple[list[int], list[int], list[int | None]]:
        versions = [p._version for p in self._counted]
        return list(map(id, self._listed())), versions, list(map(_place, self._tensors))

    def _listed(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._lists))


def _place(x: Tensor) -> int | None:
    """Returns where a tensor lies, if it lies anywhere."""
    try:
        return x.data_ptr()
    except RuntimeError:
        return None
