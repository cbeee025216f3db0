"""Whether what a module computes can be had without calling it.

A call runs hooks, and the forward of a subclass or of the instance. What is evaluated by the parts
of a module, or by another method of it, leaves those out.
"""

__all__ = ["hooked", "own", "replaced", "stands_for_call"]

from typing import Any

from torch import nn
from torch.nn.modules import module as _torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Says whether something is called beside a module, or in place of its class's forward."""
    attributes = vars(module)
    everywhere = any([getattr(_torch, "_global" + hooks, None) for hooks in HOOKS])
    return everywhere or any([attributes[hooks] for hooks in HOOKS]) or "forward" in attributes


def replaced(kind: type[nn.Module]) -> bool:
    """Says whether a class calls another forward than the one that it was defined with, as where a
    tool has put its own into it."""
    for each in kind.__mro__:
        if each is not nn.Module and "forward" in vars(each):
            forward = vars(each)["forward"]
            names = getattr(forward, "__module__", None), getattr(forward, "__qualname__", None)
            defined = each.__module__, f"{each.__qualname__}.forward"
            return names != defined or hasattr(forward, "__wrapped__")
    return False


def stands_for_call(f: Any, name: str) -> bool:
    """Says whether a method of a callable is of the same class as what a call of it runs, or of a
    class derived from that."""
    if isinstance(f, nn.Module) and (hooked(f) or replaced(type(f))):
        return False
    for kind in type(f).__mro__:
        if name in vars(kind):
            return True
        if "forward" in vars(kind) or "__call__" in vars(kind):
            return False
    return False


def own(f: Any, name: str) -> Any | None:
    """Returns a method that stands for calls of a callable, or None."""
    return getattr(f, name) if stands_for_call(f, name) else None
