"""Loads the native libraries, and says why where it cannot.

`_C` holds the operators' schemas and their CPU kernels; `_C_cuda`, beside it, their CUDA kernels.
It is loaded beside a CUDA build of torch only, as it needs that build's libraries.

Nothing here raises or warns: :mod:`sda_fast.ops` does, when an operator is used.
"""

__all__ = [
    "available",
    "cuda_available",
    "cuda_reason",
    "device_reason",
    "fingerprint",
    "has_bfloat16",
    "info",
    "reason",
    "refuse",
]

import ctypes
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # its libraries must be loaded before ours

from ._compile import constant

FUNCTIONS = ("build_info", "fingerprint", "has_bfloat16", "isa", "normals", "philox")


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        library = import_module("._C", __package__)
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}._C":
            return None, f"sda_fast's native library cannot be loaded: {error}"
        return None, (
            f"sda_fast's native library is missing in {Path(__file__).parent}: these sources were "
            "not built for this version of Python, and hide an installed package if there is one "
            "(run elsewhere, or build them: pip install --no-build-isolation -e .)"
        )
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"sda_fast's native library cannot be loaded: {error}"

    missing = [name for name in FUNCTIONS if not hasattr(library, name)]
    return (None, _other_sources(f"it has no {missing[0]}")) if missing else (library, None)


def _other_sources(why: str) -> str:
    return (
        f"sda_fast's native library was built from other sources than the package's ({why}): "
        "build it again (pip install . does)"
    )


def _load_cuda(library: ModuleType | None) -> str | None:
    """Loads the CUDA library and returns why it could not be, if so."""
    if library is None:
        return reason
    if not library.build_info()["cuda"]:
        return "sda_fast was built without CUDA (no nvcc was found, or SDA_FAST_CUDA was OFF)"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"

    path = Path(library.__file__ or "").with_name("_C_cuda.so")
    if not path.is_file():
        return (
            f"sda_fast's CUDA library is missing: there is no {path.name} beside {library.__name__}"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.sda_fast_cuda_problem.restype = ctypes.c_char_p
        problem = loaded.sda_fast_cuda_problem()
    except (OSError, AttributeError) as error:
        return f"sda_fast's CUDA library cannot be loaded: {error}"

    return None if problem is None else f"sda_fast's CUDA library cannot run: {problem.decode()}"


_library, reason = _load()
available = _library is not None

cuda_reason = _load_cuda(_library)
cuda_available = cuda_reason is None


@constant
def device_reason(index: int | None) -> str | None:
    """Returns why the CUDA library cannot serve a CUDA device, or None if it can."""
    return _device_reason(index)


@cache  # within, as torch.compile looks into a cache
def _device_reason(index: int | None) -> str | None:
    if cuda_reason is not None or _library is None:
        return cuda_reason

    major, minor = torch.cuda.get_device_capability(index)
    architectures = _library.build_info()["cuda_architectures"]
    for architecture in architectures.split():
        number, _, kind = architecture.partition("-")
        built = int("".join(c for c in number if c.isdigit()))
        # machine code serves the minor versions from its own on, PTX all that came later
        if kind != "virtual" and built // 10 == major and built % 10 <= minor:
            return None
        if kind != "real" and number.isdigit() and built <= 10 * major + minor:
            return None

    return (
        f"sda_fast's CUDA library was built for architectures {architectures}, and this GPU is of "
        f"compute capability {major}.{minor}"
    )


def refuse(why: str) -> None:
    """Gives up the native libraries, found not to fit the package."""
    global _library, available, reason, cuda_available, cuda_reason

    _library, available, cuda_available = None, False, False
    reason = cuda_reason = _other_sources(why)


def fingerprint(x: torch.Tensor) -> int | None:
    """Returns a number of a CPU tensor's contents, by which they are told from others, or None
    without the library, or where they are not simply numbers in memory."""
    if _library is None or not is_plain(x):
        return None
    x = x.detach().contiguous()
    return int(_library.fingerprint(x.data_ptr(), x.nbytes))


def is_plain(x: torch.Tensor) -> bool:
    """Says whether a tensor is of numbers in memory: a class of its own may have none, or others
    (quantised or distributed weights, tensors without data), and sparse ones have several lists."""
    return type(x.detach()) is torch.Tensor and x.layout is torch.strided


def has_bfloat16() -> bool:
    """Returns whether the CPU's instruction set in use has products in bfloat16."""
    return _library is not None and bool(_library.has_bfloat16())


def info() -> dict[str, Any]:
    """Returns what is known of the native libraries.

    The keys are `available`, `reason` (why not), `cuda_available`, `cuda_reason` and, where the
    library is available, `isa` and those of `_C.build_info()`: `version`, `compiler`, `torch` (the
    version built against), `cuda`, `cuda_version` and `cuda_architectures`.
    """
    known: dict[str, Any] = {
        "available": available,
        "reason": reason,
        "cuda_available": cuda_available,
        "cuda_reason": cuda_reason,
    }
    if _library is not None:
        known |= _library.build_info()
        known["isa"] = _library.isa()
    return known
