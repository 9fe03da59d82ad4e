"""Our reading of JSON Schema finds fault where the reference library does, and nowhere else."""

import copy
import json
import random
import re

import pytest
from tiny_bundle import PALETTE, manifest

from export.bundle import SCHEMA, EngineChoice, EngineMeasurement
from export.schema import schema_problem
from fastv2v.errors import ConfigError

VALUES = (None, True, 0, 1, -1, 2.0, 2.5, "", "x", "labels", "0" * 64, [], [1], {}, {"a": 1}, 10**6, 300)


def full_record():
    measured = EngineMeasurement(
        engine="onnxruntime", precision="f32", threads=1, accepted=True, reason="", median_ms=1.5
    )
    choice = EngineChoice(
        engine="onnxruntime", precision="f32", median_ms=1.5, cpu="", cpu_features=("avx2",), measurements=(measured,)
    )
    return manifest(palette=PALETTE, engine=choice, files={"step.onnx": "0" * 64}).to_json()


def places(value, path=()):
    """Every path into nested lists and objects."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def altered(record, rng):
    """A copy with one or two values replaced, removed or added."""
    record = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 2))):
        *way, last = rng.choice([path for path in places(record) if path])
        inner = record
        for key in way:
            inner = inner[key]
        action = rng.random()
        if action < 0.2:
            del inner[last]
        elif action < 0.3 and isinstance(inner, dict):
            inner[rng.choice(("new", "", "x"))] = rng.choice(VALUES)
        else:
            inner[last] = copy.deepcopy(rng.choice(VALUES))
    return record


def test_a_manifest_fits():
    assert schema_problem(full_record(), SCHEMA) is None


def test_it_agrees_with_the_reference_library():
    jsonschema = pytest.importorskip("jsonschema", reason="the reference is not installed")
    reference = jsonschema.Draft202012Validator(SCHEMA)
    record, rng, refused = full_record(), random.Random(0), 0
    for _ in range(2000):
        candidate = altered(record, rng)
        problem = schema_problem(candidate, SCHEMA)
        assert (problem is None) == reference.is_valid(candidate), json.dumps(candidate)
        refused += problem is not None
    assert 500 < refused < 2000


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        ({"s": [1, "24"]}, {"properties": {"s": {"items": {"type": "integer"}}}}, "s.1: '24' is not of type 'integer'"),
        ({}, {"required": ["gap"]}, "'gap' is a required property"),
        ({"b": 1}, {"additionalProperties": False}, "'b' was unexpected"),
        (True, {"type": "number"}, "True is not of type 'number'"),
        (True, {"const": 1}, "True is not 1"),
        ({"a": {"b": 1}}, {"properties": {"a": {"anyOf": [{"type": "null"}, {"properties": {"b": {"enum": [2]}}}]}}},
         "a.b: 1 is not one of 2"),
        ([1], {"minItems": 2}, r"\[1\] is too short"),
        (0, {"exclusiveMinimum": 0}, "0 is not above 0"),
    ],
)  # fmt: skip
def test_the_message_names_the_key(value, schema, problem):
    assert re.fullmatch(problem, schema_problem(value, schema))


def test_an_unknown_keyword_is_not_passed_over():
    with pytest.raises(ConfigError, match="keyword 'multipleOf' is not known"):
        schema_problem(1, {"multipleOf": 2})
