"""What a noise process is known by, in this process and in any other."""

__all__ = ["digest_of", "parts_of"]

import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain, cycle
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WORDS = (str, complex, range, torch.dtype, np.dtype, PurePath, Enum)
NUMBERS = (int, float, np.generic)
DATA = (type(None), *NUMBERS, *WORDS, bytes, slice, Tensor, np.ndarray, Mapping, Sequence, Set)

# Objects of these, but for modules, are no data: locks, loggers, generators, compilers.
SYSTEM = {"torch", *sys.stdlib_module_names}


def parts_of(sde: Any) -> dict[str, str]:
    """Returns the name of what a noise process is, and of each estimator and process within it, and
    a digest of every part of theirs, by names such as "sde.eps.A"."""
    parts: dict[str, str] = {}
    name, x, above = "sde", sde, [sde]
    for inner in cycle(("eps", "sde")):
        label, members = _taken_apart(x)
        below = getattr(x, inner, None)
        ends = isinstance(below, DATA) or any(below is other for other in above)
        if not ends:
            members.pop(inner, None)
        parts[name] = label
        parts |= {f"{name}.{key}": digest_of(value) for key, value in members.items()}
        if ends:
            break
        name, x = f"{name}.{inner}", below
        above.append(x)
    return parts


def digest_of(x: Any) -> str:
    """Returns a digest of data, or of an object by its class and its attributes, which may be
    others. Of code it knows the names only."""
    return _digest(x, []).hex()


def _digest(x: Any, above: list[Any]) -> bytes:
    """Digests an object that is a part of those above it."""
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, WORDS):
        return _hash(type(x).__qualname__, str(x).encode())
    if isinstance(x, int | float):
        whole = isinstance(x, int) or x.is_integer()  # 1 and 1.0 are the same
        return _hash("number", repr(int(x) if whole else x).encode())
    if x is None or isinstance(x, bytes):
        return _hash(type(x).__name__, x or b"")
    if isinstance(x, Tensor):
        return _tensor(x)
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:  # whose bytes are addresses
            return _digest(x.tolist(), above)
        return _hash("array", f"{x.dtype} {x.shape}".encode(), x.tobytes())

    for i, other in enumerate(above):
        if other is x:
            return _hash("above", str(i).encode())
    above = [*above, x]

    if isinstance(x, slice):
        return _hash("slice", *(_digest(part, above) for part in (x.start, x.stop, x.step)))
    if isinstance(x, Sequence):
        return _hash("sequence", *(_digest(part, above) for part in x))
    if isinstance(x, Set):
        return _hash("set", *sorted(_digest(part, above) for part in x))
    if isinstance(x, Mapping):
        pairs = sorted((_digest(key, above), _digest(value, above)) for key, value in x.items())
        return _hash("mapping", *chain(*pairs))

    label, members = _taken_apart(x)
    named = ((name.encode(), _digest(value, above)) for name, value in members.items())
    return _hash(label, *chain(*named))


def _taken_apart(x: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name of what an object is, and its parts."""
    if isinstance(x, ModuleType):
        return x.__name__, {}
    if isinstance(x, partial):
        return "partial", {"func": x.func, "args": x.args, "keywords": x.keywords}
    if isinstance(x, MethodType):
        return x.__qualname__, {"self": x.__self__}
    if isinstance(x, type | FunctionType | BuiltinFunctionType):
        return x.__qualname__, {}

    label = type(x).__qualname__
    attributes = {
        name: value
        for name, value in sorted(getattr(x, "__dict__", {}).items())
        if not name.startswith("_")  # which are of caches
        and not isinstance(getattr(type(x), name, None), cached_property)
    }
    if isinstance(x, nn.Module):
        members = {
            **attributes,
            **dict(x.named_parameters(recurse=False)),
            **dict(x.named_buffers(recurse=False)),
            **dict(x.named_children()),
        }
    elif is_dataclass(x):
        members = {field.name: getattr(x, field.name) for field in fields(x)}
    elif isinstance(x, SimpleNamespace) or _is_ours(x):
        members = attributes
    elif type(x).__module__.partition(".")[0] in SYSTEM:
        members = {}
    else:  # what else it holds need not be of the run
        members = {k: v for k, v in attributes.items() if isinstance(v, (*DATA, nn.Module))}
        if hasattr(x, "state_dict"):
            members["state_dict"] = x.state_dict()
    members.pop("device", None)  # where it is, not what
    return label, members


def _is_ours(x: Any) -> bool:
    """Says whether the class of an object, or one that it derives from, is of this package."""
    package = __name__.partition(".")[0]
    return any(kind.__module__.partition(".")[0] == package for kind in type(x).__mro__)


def _tensor(x: Tensor) -> bytes:
    kind = f"{x.dtype} {tuple(x.shape)}".encode()
    if x.is_meta:
        return _hash("tensor", kind)
    if x.layout != torch.strided:
        entries = x.detach().to_sparse_coo().coalesce()
        return _hash("sparse", kind, _tensor(entries.indices()), _tensor(entries.values()))
    flat = x.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return _hash("tensor", kind, flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _hash(kind: str, *parts: bytes | memoryview) -> bytes:
    """Hashes bytes so that neither their kind nor where they are parted can be mistaken."""
    digest = sha256(kind.encode())
    for part in parts:
        digest.update(f":{len(part)}:".encode())
        digest.update(part)
    return digest.digest()
