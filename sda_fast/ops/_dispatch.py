"""Which backend an operator runs on, and what torch must be told of it."""

__all__ = [
    "backend",
    "below_autograd",
    "call",
    "fake_elementwise",
    "fake_in_place",
    "fake_like",
    "is_native",
    "native",
    "need_grad",
    "register",
    "transformed",
    "unserved",
]

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .. import _native

BACKENDS = ("auto", "native", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The library's operators: to find one in torch.ops takes longer. They ask nothing: that it is for
# those that have asked `is_native`.
native = SimpleNamespace()
below_autograd = torch._C._AutoDispatchBelowAutograd

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_backend: ContextVar[str] = ContextVar("sda_fast.backend", default="auto")
_traced = (
    "auto"  # the same for torch.compile, which guards on a global but cannot read a ContextVar
)
_warned = False


# Where an operator runs


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Sets the backend of the operators for a `with` block.

    Arguments:
        name: `"auto"` (native where it can serve), `"native"` (an error where it cannot) or
            `"reference"` (pure PyTorch).
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, but is {name!r}")

    global _traced

    token, _traced = _backend.set(name), name
    try:
        yield
    finally:
        _backend.reset(token)
        _traced = _backend.get()  # and not what was there before, which may be another thread's


def unserved(x: Tensor) -> str | None:
    """Returns why the native operators cannot serve a tensor, or None if they can."""
    if not _native.available:
        return _native.reason
    if x.dtype not in DTYPES:
        served = ", ".join(str(dtype)[6:] for dtype in DTYPES[:-1])
        return (
            f"the native operators serve {served} and {str(DTYPES[-1])[6:]}, not {str(x.dtype)[6:]}"
        )
    if x.is_cpu:
        return None
    if x.is_cuda:
        return _native.device_reason(x.device.index)
    return f"there are no native operators for the device {x.device.type}"


def transformed(tensors: Iterable[Tensor | None]) -> str | None:
    """Returns why tensors inside a transformation cannot be served, or None if they can be."""
    dual = forward_ad._current_level >= 0
    for x in tensors:
        if x is None:
            continue
        if _is_wrapped(x):
            return "the native operators do not serve the transformations of torch.func"
        if dual and forward_ad.unpack_dual(x).tangent is not None:
            return "the native operators do not serve forward-mode differentiation"
    return None


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    """Lists an operator's tensors, those in lists of them too."""
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list):
            yield from _tensors(x)


def need_grad(args: Iterable[Any]) -> bool:
    """Says whether autograd is to keep what leads to an operator's tensors."""
    return torch.is_grad_enabled() and _any_requires_grad(args)


def _any_requires_grad(args: Iterable[Any]) -> bool:
    for x in args:  # not by way of a generator, which takes as long as all else here
        if isinstance(x, Tensor):
            if x.requires_grad:
                return True
        elif isinstance(x, list) and _any_requires_grad(x):
            return True
    return False


def is_native(first: Tensor, *others: Tensor | None, in_place: bool = False) -> bool:
    """Says whether an operator on floating-point tensors is to run natively.

    Arguments:
        first: The first of its floating-point arguments, which decides.
        others: The others, if they are given: all may carry gradients.
        in_place: Whether it changes the first, of which the native operator keeps no gradient.
    """
    global _warned

    compiling = is_compiling()
    name = _traced if compiling else _backend.get()
    if name == "reference":
        return False

    tensors = (first, *others)
    reason = unserved(first)
    if reason is None and not compiling:
        reason = transformed(tensors)
    if reason is None and in_place and need_grad(tensors):
        reason = "the native operators in place keep no gradients (use torch.no_grad)"
    if reason is None:
        return True

    if name == "native":
        raise RuntimeError(f"the backend is native, but {reason}")
    if not (_native.available or _warned or compiling):
        _warned = True
        warnings.warn(
            f"{reason}; falling back to the pure PyTorch reference, which is slower",
            UserWarning,
            stacklevel=4,
        )
    return False


def call(operator: Callable[..., Any], *args: Any) -> Any:
    """Calls an operator that returns tensors, below autograd where no gradient is asked for:
    autograd's kernel, which is Python, takes longer than a small operator itself."""
    if is_compiling() or need_grad(args):
        return operator(*args)
    with below_autograd():
        return operator(*args)


# What torch asks of an operator


def register(
    name: str,
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Tells torch the shapes of an operator's results, and its gradient.

    Arguments:
        name: The operator's name.
        fake: Returns tensors of the shape and dtype of the results.
        setup: Saves for the gradient what it needs.
        backward: Returns the gradients with respect to the operator's arguments.
    """
    if not _native.available:
        return
    if (misfit := _misfit(name, fake)) is not None:
        return _native.refuse(misfit)
    setattr(native, name, getattr(torch.ops.sda_fast, name).default)
    torch.library.register_fake(f"sda_fast::{name}", _on_one_device(name, fake))
    if backward is not None:
        torch.library.register_autograd(f"sda_fast::{name}", backward, setup_context=setup)


def _misfit(name: str, fake: Callable[..., Any]) -> str | None:
    """Returns what is wrong with the library's operator, if it is none that the package knows."""
    operator = getattr(torch.ops.sda_fast, name, None)
    if operator is None:
        return f"it has no operator {name}"
    try:
        signature(fake).bind(*operator.default._schema.arguments)
    except TypeError:
        return f"its operator is {operator.default._schema}"
    return None


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a fake refuse tensors of several devices: a real one among them would be answered with
    memory that nothing was written to."""

    def checked(*inputs: Any) -> Any:
        devices = [str(x.device) for x in _tensors(inputs)]
        if len(set(devices)) > 1:
            raise RuntimeError(
                f"the tensors of {name} must be on the same device, but are on {', '.join(devices)}"
            )
        return fake(*inputs)

    return checked


def fake_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def fake_elementwise(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def fake_in_place(*_: Any) -> None:
    return None
