import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastv2v.config import from_dict, to_dict
from fastv2v.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    betas: tuple[float, float] = (0.5, 0.999)
    names: tuple[str, ...] = ()
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ConfigError(f"limit must not be negative, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class Other:
    other: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    lr: float = 1e-3
    flag: bool = False
    mode: Literal["fast", "good", 3] = "fast"
    folder: Path | None = None
    inner: Inner = field(default_factory=Inner)
    either: Inner | Other | None = None
    many: tuple[Inner, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)


numbers = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(
    Inner,
    betas=st.tuples(numbers, numbers),
    names=st.lists(st.text()).map(tuple),
    limit=st.none() | numbers.filter(lambda x: x >= 0),
)
outers = st.builds(
    Outer,
    steps=st.integers(),
    lr=numbers,
    flag=st.booleans(),
    mode=st.sampled_from(["fast", "good", 3]),
    folder=st.none() | st.sampled_from([Path("a/b"), Path("/tmp/x")]),
    inner=inners,
    either=st.none() | inners | st.builds(Other, other=st.integers()),
    many=st.lists(inners, max_size=2).map(tuple),
    weights=st.dictionaries(st.text(), numbers, max_size=2),
    sizes=st.lists(st.tuples(st.integers(), st.integers()), max_size=2),
)


class TestRoundTrip:
    @given(outers)
    def test_through_json_gives_the_same_config(self, config):
        assert from_dict(Outer, json.loads(json.dumps(to_dict(config), allow_nan=False))) == config

    def test_absent_fields_take_their_defaults(self):
        assert from_dict(Outer, {"steps": 3}) == Outer(steps=3)

    def test_an_integer_is_a_fine_float(self):
        config = from_dict(Outer, {"steps": 3, "lr": 1})
        assert config.lr == 1.0 and type(config.lr) is float


class TestRefusals:
    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({"steps": 1, "stpes": 2}, "Outer has no key stpes; it has steps, lr"),
            ({}, "Outer lacks the key steps"),
            ({"steps": "1"}, "steps must be of type int, got '1' (str)"),
            ({"steps": True}, "steps must be of type int, got True (bool)"),
            ({"steps": 1.0}, "steps must be of type int, got 1.0 (float)"),
            ({"steps": 1, "lr": False}, "lr must be of type float, got False"),
            ({"steps": 1, "lr": float("nan")}, "lr must be a finite number"),
            ({"steps": 1, "lr": None}, "lr must be of type float, got None"),
            ({"steps": 1, "mode": "bad"}, "mode must be one of 'fast', 'good', 3, got 'bad'"),
            ({"steps": 1, "mode": 3.0}, "mode must be one of"),
            ({"steps": 1, "folder": 5}, "folder must be a path, got 5"),
            ({"steps": 1, "inner": {"beta": 1}}, "inner (Inner) has no key beta"),
            ({"steps": 1, "inner": 5}, "inner (Inner) must be a mapping of its fields, got 5"),
            ({"steps": 1, "inner": {"betas": [0.5]}}, "inner.betas must have 2 entries, got 1"),
            ({"steps": 1, "inner": {"names": ["a", 2]}}, "inner.names[1] must be of type str"),
            ({"steps": 1, "inner": {"names": "ab"}}, "inner.names must be a list, got 'ab'"),
            ({"steps": 1, "inner": {"limit": -1}}, "inner (Inner): limit must not be negative, got -1.0"),
            ({"steps": 1, "many": [{}, {"x": 1}]}, "many[1] (Inner) has no key x"),
            ({"steps": 1, "either": {"neither": 1}}, "either fits none of its types"),
            ({"steps": 1, "weights": {"gan": "1"}}, "weights.gan must be of type float"),
            ({"steps": 1, "weights": [1]}, "weights must be a mapping with text keys"),
            ([1], "Outer must be a mapping of its fields"),
        ],
    )
    def test_the_key_is_named(self, mapping, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            from_dict(Outer, mapping)

    def test_values_without_a_place_in_json_are_named(self):
        @dataclass
        class Holder:
            value: Any

        for value, message in [
            ({"f": print}, "value.f is <built-in function print>"),
            ([float("inf")], re.escape("value[0] is inf")),
            ({1: 2}, "value has the key 1"),
        ]:
            with pytest.raises(ConfigError, match=message):
                to_dict(Holder(value))
        with pytest.raises(ConfigError, match="expected a config dataclass"):
            to_dict({"a": 1})
