"""The build backend: scikit-build-core, and the torch that is already installed.

An isolated build hides the environment's packages from `sys.path`, so a build requirement on torch
would download gigabytes that the build does not need: all it uses are torch's headers and the name
of a library. This backend looks for torch where the environment's packages lie, passes its folder
to CMake, and asks for torch as a build requirement only where there is none.

The environment variable `SDA_FAST_TORCH` names the folder of the package torch outright.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

TORCH = "torch>=2.11"
HEADER = Path("include", "torch", "csrc", "stable", "library.h")

Settings = dict[str, Any] | None

build_sdist = _build.build_sdist
get_requires_for_build_sdist = _build.get_requires_for_build_sdist
prepare_metadata_for_build_editable = _build.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = _build.prepare_metadata_for_build_wheel


def find_torch() -> Path | None:
    """Returns the folder of the package torch that this environment has, if any."""
    named = os.environ.get("SDA_FAST_TORCH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / HEADER).is_file():
            raise FileNotFoundError(
                f"SDA_FAST_TORCH is {named}, which is not the folder of a torch >= 2.11: it has no "
                f"{HEADER}."
            )
        return folder

    places = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if _sees_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        places += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]

    for place in places:
        folder = Path(place or ".", "torch")
        if (folder / HEADER).is_file():
            return folder.resolve()

    return None


def _sees_system_packages() -> bool:
    """Says whether this is a virtual environment that shows the system's packages."""
    config = Path(sys.prefix, "pyvenv.cfg")
    if not config.is_file():
        return False
    lines = config.read_text(encoding="utf-8").lower().replace(" ", "").splitlines()
    return "include-system-site-packages=true" in lines


def _requires(required: list[str]) -> list[str]:
    return required if find_torch() else [*required, TORCH]


def _settings(settings: Settings) -> dict[str, Any]:
    """Adds what CMake is to be told: torch's folder, and the options given in the environment."""
    settings = dict(settings or {})
    torch = find_torch()
    if torch is not None:
        settings.setdefault("cmake.define.SDA_FAST_TORCH", str(torch))
    for name in ("SDA_FAST_CUDA", "SDA_FAST_WERROR"):
        if name in os.environ:
            settings.setdefault(f"cmake.define.{name}", os.environ[name])
    return settings


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _requires(_build.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _requires(_build.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build.build_wheel(wheel_directory, _settings(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build.build_editable(wheel_directory, _settings(config_settings), metadata_directory)
