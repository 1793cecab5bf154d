"""Frozen dataclasses as settings: built from plain values, checked, and overridden by text.

A field's type says what it may hold: its limits (`Annotated[int, Range(1)]`), the words it may be
(`Literal`), a path (`FilePath`), or a section (another dataclass).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from captioner.errors import ConfigError

T = TypeVar("T")

_PATH = "path"
FilePath = Annotated[str, _PATH]
"""A path in which `~` and `$VARIABLE` are expanded."""


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number."""

    low: float
    high: float = math.inf

    def check(self, value: float, where: str) -> float:
        """Return the value.

        Raises:
            ConfigError: It is out of range.
        """
        if self.low <= value <= self.high:
            return value
        limits = f"from {self.low:g} to {self.high:g}"
        if self.high == math.inf:
            limits = f"at least {self.low:g}"
        raise ConfigError(f"{where} must be {limits}; got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain dicts, lists and scalars, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration dataclass from plain values, checking every key and type.

    Args:
        cls: One of the dataclasses of this module.
        values: Plain nested values, as YAML or JSON give them.
        where: Dotted path of `values`, for messages.

    Raises:
        ConfigError: An unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where or 'the configuration'} must be a section of keys, got {values!r}"
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"unknown key {_join(where, key)!r}; {hint}")
    made = {k: _convert(hints[k], v, _join(where, k)) for k, v in values.items()}
    try:
        return cls(**made)
    except TypeError as error:  # a required key is absent
        raise ConfigError(f"{where or 'the configuration'}: {error}") from None


def apply_override(cls: type, values: dict[str, Any], override: str) -> None:
    """Set one key of plain nested values from a text such as `optim.learning_rate=1e-3`.

    Args:
        cls: The dataclass that the values are for.
        values: Plain nested values; they are changed.
        override: `section.key=value`.

    Raises:
        ConfigError: The text does not have this form, or the value is not YAML.
    """
    import yaml

    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} must look like optim.learning_rate=1e-3")
    node = values
    *parents, last = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section")
        node = child
    try:
        node[last] = _override_value(_key_type(cls, key), text)
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: {error}") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None


def _key_type(cls: type, key: str) -> Any:
    """Return the type of a dotted key of a dataclass; None if there is no such key."""
    hint: Any = cls
    for name in key.split("."):
        if typing.get_origin(hint) is tuple:
            (hint, *_) = typing.get_args(hint)
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _override_value(hint: Any, text: str) -> Any:
    """Read the text of an override as a plain value of its key's type.

    Raises:
        yaml.YAMLError: The key does not hold text, and the value is not YAML.
    """
    import yaml

    if typing.get_origin(hint) in (Union, types.UnionType):
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("None", "none"):
            raise ConfigError(f"write null for no value, or ./{text} for a file of that name")
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    if hint is str or (typing.get_origin(hint) is Literal and text in typing.get_args(hint)):
        return text  # YAML would cut "runs/exp #3" at the comment and read 001 as a number
    if hint in (int, float):  # YAML would read 010 as 8 and 1:30 as 90
        if re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        if ":" in text:
            return text
    *_, last, _end = yaml.scan(text)
    if last.end_mark.index < len(text.rstrip()):  # YAML would ignore a comment
        return text
    return yaml.safe_load(text)


def _expand_path(path: str, where: str) -> str:
    """Replace a leading `~` and environment variables in a path.

    Raises:
        ConfigError: It is empty, or there is no such variable or home directory.
    """
    if not path.strip():
        raise ConfigError(f"{where} is empty: name a file or folder (. is the working directory)")
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset and unset[0] in path:
        raise ConfigError(f"{where}={path}: the environment variable {unset[0]} is not set")
    if expanded.startswith("~"):
        raise ConfigError(
            f"{where}={path}: {path.split('/')[0]} is no home directory; write ./{path} for a "
            "folder of that name"
        )
    return expanded


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type hint; ints pass as floats, YAML's '1e-3' too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        plain, limits = arguments
        value = _convert(plain, value, where)
        return _expand_path(value, where) if limits is _PATH else limits.check(value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(inner, value, where)
    if origin is Literal:
        # YAML reads a bare `off` as False.
        value = "off" if value is False and "off" in arguments else value
        if value not in arguments:
            raise ConfigError(
                f"{where} must be one of {', '.join(map(str, arguments))}; got {value!r}"
            )
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(value := float(value)):
                return value
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {hint.__name__}; got {value!r}")
