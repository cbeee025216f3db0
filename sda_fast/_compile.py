"""What torch's compiler is told of our functions, without loading it."""

__all__ = ["constant"]

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """Marks a function whose result is a constant to torch.compile, as does
    :func:`torch.compiler.assume_constant_result`, which takes longer to import than all of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
