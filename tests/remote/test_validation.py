"""Our validator agrees with the library of reference wherever it judges at all."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import SchemaError
from llavakit.remote.validation import check_schema, faults
from tests.engine.random_schemas import CONSTANTS, NAMES, SchemaMaker

values = st.recursive(
    st.sampled_from(CONSTANTS) | st.integers(-300, 300) | st.sampled_from(["abc", "123-45/A", 1.0]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "v", "next"]), inner, max_size=4)
    ),
    max_leaves=8,
)


def obeys(value, schema) -> bool:
    return not list(faults(value, schema))


def reference(value, schema) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@given(st.integers(0, 2000), values)
def test_random_schemas_are_judged_as_by_the_reference(seed, value):
    schema = SchemaMaker(seed).make()
    check_schema(schema)
    assert obeys(value, schema) == reference(value, schema)


@given(st.data())
def test_parts_of_a_schema_are_judged_as_by_the_reference(data):
    """Values that are made for the schema, so that most of them obey."""
    schema = SchemaMaker(data.draw(st.integers(0, 2000))).make()
    for name, part in schema.get("properties", {}).items():
        whole = {**part, "$defs": schema.get("$defs", {})}
        value = data.draw(values, label=name)
        assert obeys(value, whole) == reference(value, whole)


SCHEMAS = [
    True,
    False,
    {},
    {"type": ["integer", "null"]},
    {"type": "integer"},
    {"type": "number", "multipleOf": 0.5},
    {"multipleOf": 3, "exclusiveMinimum": 0},
    {"const": 1},
    {"const": [True, {"a": None}]},
    {"enum": [0, "0", False]},
    {"minLength": 2, "maxLength": 3, "pattern": "b+"},
    {"items": {"type": "integer"}, "uniqueItems": True},
    {"prefixItems": [{"type": "string"}], "items": False},
    {"contains": {"const": 1}, "minContains": 1, "maxContains": 2},
    {"contains": {"const": 1}, "minContains": 0},
    {"minItems": 1, "maxItems": 2},
    {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
    {"properties": {"a": True}, "patternProperties": {"^b": {"type": "null"}}},
    {"patternProperties": {"^b": True}, "additionalProperties": False},
    {"required": ["a"], "minProperties": 1, "maxProperties": 2},
    {"propertyNames": {"maxLength": 1}},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {"required": ["b"]}}},
    {"allOf": [{"type": "object"}, {"required": ["a"]}]},
    {"anyOf": [{"type": "string"}, {"minimum": 2}]},
    {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
    {"not": {"type": "object"}},
    {"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "array"}},
    {"if": {"type": "string"}},
    {"$ref": "#/$defs/a~1b", "minimum": 2, "$defs": {"a/b": {"type": "integer"}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    {"format": "email", "title": "no rule", "x-own": {"type": 5}},
]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    2,
    3,
    0.3,
    2.5,
    -1,
    float("1e999"),
    "",
    "a",
    "b",
    "bb",
    "abbb",
    "0",
    "é😀",
    [],
    [1],
    [1, 1.0],
    [1, True],
    ["a"],
    ["a", 1],
    [True, {"a": None}],
    [1, 1, 1],
    {},
    {"a": "x"},
    {"a": 1},
    {"a": {}},
    {"a": {"a": {"b": 1}}},
    {"b": None},
    {"b": 1, "c": 2},
    {"a": "x", "b": None, "c": 3},
    {"long": 1},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_keyword_is_judged_as_by_the_reference(schema):
    check_schema(schema)
    for value in VALUES:
        if value == float("1e999") and "multipleOf" in str(schema):
            continue  # the reference fails on it
        assert obeys(value, schema) == reference(value, schema), value


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "dynamicRef"),
        ({"$ref": "https://example.org/schema"}, "does not begin with '#/'"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"pattern": "("}, "cannot be used"),
        ({"items": [{"type": "string"}]}, "prefixItems"),
        ({"anyOf": [5]}, "not int"),
        ([], "not list"),
    ],
)
def test_what_cannot_be_judged_is_refused_beforehand(schema, sentence):
    with pytest.raises(SchemaError, match=sentence):
        check_schema(schema)


def test_a_fault_says_where_it_is():
    schema = {"properties": {"people": {"items": {"required": ["age"]}}}}
    assert list(faults({"people": [{"age": 1}, {}]}, schema)) == [
        ("$.people[1]", "lacks the property 'age'")
    ]
