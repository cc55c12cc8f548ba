"""Schemas are checked before they are sent, and answers against them as the standard says."""

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
        ({"minimum": "3"}, "The schema: its 'minimum' cannot be used"),
        ({"enum": 3}, "its 'enum'"),
        ({"type": "strin"}, "'strin' is no type of JSON"),
        ({"type": ["string", "foo"]}, "no type of JSON"),
        ({"type": "object", "required": "name"}, "its 'required'"),
        ({"required": [1]}, "its 'required'"),
        ({"properties": {"a": {"type": "strin"}}}, "field 'a': 'strin' is no type"),
        ({"properties": {"a": {"items": {"minLength": -1}}}}, r"field 'a\[\]': its 'minLength'"),
        ({"properties": {"type": {"type": "foo"}}}, "field 'type': 'foo'"),
        ({"$defs": {"x": {"multipleOf": 0}}}, "field 'x': its 'multipleOf'"),
        ({"properties": []}, "its 'properties'"),
        ({"anyOf": []}, "its 'anyOf'"),
        ({"anyOf": [{"maximum": None}]}, "its 'maximum'"),
        ({"minItems": 1.5}, "its 'minItems'"),
        ({"uniqueItems": "yes"}, "its 'uniqueItems'"),
        ({"additionalProperties": "no"}, "an object or a boolean, not str"),
        ({"dependencies": {"a": ["b"]}}, "'dependencies', which is of an older draft"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "field 'a' refers to '#x'"),
        ({"$ref": "https://example.org/schema"}, "begin with '#/'"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"pattern": "("}, "cannot be used"),
        ({"patternProperties": {"(": {}}}, "cannot be used"),
        ({"items": [{"type": "string"}]}, "prefixItems"),
        ({"anyOf": [5]}, "not int"),
        ([], "not list"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_schema_is_refused_beforehand(schema, sentence):
    with pytest.raises(SchemaError, match=sentence):
        check_schema(schema)
    if isinstance(schema, dict):
        with pytest.raises(SchemaError, match="The parameters of 'look'"):
            check_schema(schema, "The parameters of 'look'")


def test_names_that_are_keywords_are_names_where_names_stand():
    check_schema({"properties": {"$ref": {"type": "string"}, "dependencies": {}, "items": True}})
    check_schema({"const": {"$ref": "#/nowhere", "type": "strin"}, "default": {"minimum": "3"}})


def test_what_was_not_judged_before_is_judged_now():
    closed = {"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}
    check_schema(closed)
    assert obeys({"a": 1}, closed) and not obeys({"b": 1}, closed)


def test_a_decimal_number_is_a_multiple_of_a_decimal_step():
    assert obeys(0.3, {"multipleOf": 0.1}) and not obeys(0.35, {"multipleOf": 0.1})
    assert not obeys(float("inf"), {"multipleOf": 3})


def test_no_reference_is_fetched():
    schema = {"$id": "https://example.org/a", "properties": {"b": {"$ref": "other"}}}
    check_schema(schema)
    with pytest.raises(SchemaError, match="leads nowhere"):
        list(faults({"b": 1}, schema))


def test_a_fault_says_where_it_is():
    schema = {"properties": {"people": {"items": {"required": ["age"]}}}}
    assert list(faults({"people": [{"age": 1}, {}]}, schema)) == [
        ("$.people[1]", "'age' is a required property")
    ]
    ((_, told),) = faults("x" * 1000, {"maxLength": 3})
    assert len(told) <= 200
