"""Checks JSON values against the part of JSON Schema that manifests use. Runs without torch, needs no package.

A deployment holds numpy, OpenCV and one engine; a validator of its own would be a fourth package. A keyword that is not
known here is refused, not passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastv2v.errors import ConfigError

Schema = Mapping[str, Any]


def schema_problem(value: object, schema: Schema) -> str | None:
    """What is wrong with a value, in words.

    Args:
        value: as ``json.loads`` gives it.
        schema: with the keywords of ``KEYWORDS``.

    Returns:
        Where and why the first rule is broken, such as ``size.0: '16' is not of type 'integer'``; None if none is.

    Raises:
        ConfigError: if the schema uses a keyword that is not known here.

    Source:
        The keywords' meaning in JSON Schema, draft 2020-12.
    """
    return next(_problems(value, schema, ""), None)


def _problems(value: Any, schema: Schema, where: str) -> Iterator[str]:
    for keyword, rule in schema.items():
        if keyword in _NOTES:
            continue
        if keyword not in KEYWORDS:
            raise ConfigError(f"the schema's keyword {keyword!r} is not known; use {', '.join(KEYWORDS)}")
        yield from KEYWORDS[keyword](value, rule, schema, where)


def _said(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what


def _inside(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
    "string": lambda x: isinstance(x, str),
    "boolean": lambda x: isinstance(x, bool),
    "number": _is_number,
    "integer": lambda x: _is_number(x) and x == x // 1,  # 2.0 is an integer in JSON
    "null": lambda x: x is None,
}


def _type(value: Any, rule: str | list[str], _: Schema, where: str) -> Iterator[str]:
    names = [rule] if isinstance(rule, str) else rule
    if not any(_TYPES[name](value) for name in names):
        yield _said(where, f"{value!r} is not of type {' or '.join(map(repr, names))}")


def _equal(value: Any, wanted: Any) -> bool:
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _const(value: Any, rule: Any, _: Schema, where: str) -> Iterator[str]:
    if not _equal(value, rule):
        yield _said(where, f"{value!r} is not {rule!r}")


def _enum(value: Any, rule: list[Any], _: Schema, where: str) -> Iterator[str]:
    if not any(_equal(value, wanted) for wanted in rule):
        yield _said(where, f"{value!r} is not one of {', '.join(map(repr, rule))}")


def _any_of(value: Any, rule: list[Schema], _: Schema, where: str) -> Iterator[str]:
    found = [list(_problems(value, choice, where)) for choice in rule]
    if all(found):
        # The choice that fits longest is the one that was meant: its problem lies deepest.
        yield max((problems[0] for problems in found), key=lambda text: text.split(":")[0].count("."))


def _required(value: Any, rule: list[str], _: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (_said(where, f"{key!r} is a required property") for key in rule if key not in value)


def _properties(value: Any, rule: Mapping[str, Schema], _: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key in (key for key in rule if key in value):
            yield from _problems(value[key], rule[key], _inside(where, key))


def _additional(value: Any, rule: Schema | bool, schema: Schema, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for key in sorted(value.keys() - schema.get("properties", {}).keys()):
        if isinstance(rule, bool):
            if not rule:
                yield _said(where, f"{key!r} was unexpected")
        else:
            yield from _problems(value[key], rule, _inside(where, key))


def _names(value: Any, rule: Schema, _: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key in value:
            yield from _problems(key, rule, where)


def _items(value: Any, rule: Schema, _: Schema, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, rule, _inside(where, index))


def _length(kind: type, keeps: Callable[[int, int], bool], what: str) -> Callable[..., Iterator[str]]:
    def check(value: Any, rule: int, _: Schema, where: str) -> Iterator[str]:
        if isinstance(value, kind) and not keeps(len(value), rule):  # type: ignore[arg-type]
            yield _said(where, f"{value!r} is too {what}")

    return check


def _bound(keeps: Callable[[Any, Any], bool], what: str) -> Callable[..., Iterator[str]]:
    def check(value: Any, rule: float, _: Schema, where: str) -> Iterator[str]:
        if _is_number(value) and not keeps(value, rule):
            yield _said(where, f"{value!r} is {what} {rule!r}")

    return check


def _pattern(value: Any, rule: str, _: Schema, where: str) -> Iterator[str]:
    if isinstance(value, str) and re.search(rule, value) is None:
        yield _said(where, f"{value!r} does not match {rule!r}")


_NOTES = ("$schema", "title", "description")
KEYWORDS: Mapping[str, Callable[..., Iterator[str]]] = {
    "type": _type,
    "const": _const,
    "enum": _enum,
    "anyOf": _any_of,
    "required": _required,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "properties": _properties,
    "items": _items,
    "minItems": _length(list, lambda n, least: n >= least, "short"),
    "maxItems": _length(list, lambda n, most: n <= most, "long"),
    "minLength": _length(str, lambda n, least: n >= least, "short"),
    "minimum": _bound(lambda x, least: x >= least, "less than the minimum of"),
    "maximum": _bound(lambda x, most: x <= most, "greater than the maximum of"),
    "exclusiveMinimum": _bound(lambda x, least: x > least, "not above"),
    "pattern": _pattern,
}
"""Keywords that schemas may use."""
