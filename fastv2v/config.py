"""Config dataclasses to plain JSON values and back, refusing whatever is not exactly right.

Understands what configs are made of: bool, int, float, str, None, Path, Literal, unions, tuples, lists, string-keyed
mappings and nested dataclasses. Needs the standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from fastv2v.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into values that ``json.dumps`` takes.

    Args:
        config: a dataclass instance.

    Returns:
        One entry for each constructor field; tuples become lists, paths become strings with forward slashes.

    Raises:
        ConfigError: if a value has no place in JSON (a function, a tensor, infinity), naming its key.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"expected a config dataclass, got {_shown(config)}")
    return cast(dict[str, Any], _plain(config, ""))


def from_dict(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Build a config dataclass from what ``to_dict`` gave, or from a file a person wrote.

    Args:
        cls: the dataclass.
        mapping: its fields by name. Fields with a default may be absent.

    Returns:
        The config, checked by its own ``__post_init__`` too.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has the wrong type, naming the key by its full path.
    """
    return cast(T, _dataclass(cls, mapping, ""))


def _plain(value: Any, key: str) -> Any:
    """``value`` as JSON types; ``key`` is its path, for messages."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{key or 'the value'} is {value}, which JSON cannot hold; use None for no limit")
        return value
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ConfigError(f"{key} has the key {_shown(name)}; keys must be text")
        return {name: _plain(item, _join(key, name)) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return {name: _plain(getattr(value, name), _join(key, name)) for name in fields}
    raise ConfigError(f"{key or 'the value'} is {_shown(value)}, which a config file cannot hold")


def _dataclass(cls: type, value: Any, key: str) -> Any:
    """One dataclass from a mapping."""
    where = f"{key} ({cls.__name__})" if key else cls.__name__
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of its fields, got {_shown(value)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := sorted(str(name) for name in value if name not in fields):
        raise ConfigError(f"{where} has no key {', '.join(unknown)}; it has {', '.join(fields)}")
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise ConfigError(f"{where} lacks the key {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    arguments = {name: _typed(hints[name], item, _join(key, name)) for name, item in value.items()}
    try:
        return cls(**arguments)
    except ValueError as error:  # ConfigError is one; its sentence lacks the path
        raise ConfigError(f"{where}: {error}") from error


def _typed(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, key)
    if origin is Literal:
        for choice in arguments:
            if value == choice and type(value) is type(choice):
                return choice
        raise ConfigError(f"{key} must be one of {', '.join(map(repr, arguments))}, got {_shown(value)}")
    if dataclasses.is_dataclass(hint):
        return _dataclass(cast(type, hint), value, key)
    if (origin or hint) in (tuple, list, Sequence):
        return _sequence(origin or hint, arguments, value, key)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{key} must be a mapping with text keys, got {_shown(value)}")
        item_hint = arguments[1] if arguments else Any
        return {name: _typed(item_hint, item, _join(key, name)) for name, item in value.items()}
    return _scalar(hint, value, key)


def _union(options: tuple[Any, ...], value: Any, key: str) -> Any:
    """The first option that takes the value."""
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _typed(options[0], value, key)
    reasons = []
    for option in options:
        try:
            return _typed(option, value, key)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(f"{key} fits none of its types: {'; '.join(reasons)}")


def _sequence(kind: Any, hints: tuple[Any, ...], value: Any, key: str) -> Any:
    """A tuple of fixed or any length, or a list."""
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{key} must be a list, got {_shown(value)}")
    if kind is not tuple or not hints or hints[-1] is Ellipsis:
        hints = (hints[0] if hints else Any,) * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{key} must have {len(hints)} entries, got {len(value)}")
    items = [_typed(hint, item, f"{key}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True))]
    return items if kind is list else tuple(items)


def _scalar(hint: Any, value: Any, key: str) -> Any:
    """A leaf. True is not the number 1 here, and an integer is a fine float."""
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, got {value}")
        return float(value)
    if hint in (bool, int, str, type(None)) and type(value) is hint:
        return value
    if hint not in (bool, int, str, float, Path, type(None)):
        raise ConfigError(f"{key} is annotated as {hint}, which a config cannot be")
    wanted = "a path" if hint is Path else f"of type {hint.__name__}"
    raise ConfigError(f"{key} must be {wanted}, got {_shown(value)}")


def _join(key: str, name: str) -> str:
    """Path of a field below ``key``."""
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    """A value and its type, short enough for a sentence."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
