"""Options as they stand in a file or on a command line."""

__all__ = ["convert", "read_config"]

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any


def convert(key: str, value: Any, kind: Any) -> Any:
    """Checks that a value is of the kind of an option."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    wanted = names.get(kind, "a table" if kind == dict[str, Any] else "a list of integers")
    number = isinstance(value, int | float) and not isinstance(value, bool)

    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind == dict[str, Any] and isinstance(value, dict):
        return value
    if (
        kind == tuple[int, ...]
        and isinstance(value, list | tuple)
        and all(type(n) is int for n in value)
    ):
        return tuple(value)
    raise ValueError(f"{key} must be {wanted}, got {value!r}")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the options that a TOML or JSON file sets.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML or JSON, or no table of options.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {str(path)!r}")

    try:
        text = path.read_text()
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            values = _toml().loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error

    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a table of options, got {type(values).__name__}")
    return values


def _toml() -> Any:
    """Imports a reader of TOML, which Python has since 3.11."""
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ImportError as error:
            reason = error
    raise ImportError(f"TOML needs Python 3.11, or pip install 'sda-fast[train]' ({reason})")
