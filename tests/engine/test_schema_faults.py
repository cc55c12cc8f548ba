"""Whatever schema is refused: the error names the schema or the tool, and the field."""

from __future__ import annotations

import pytest

from llavakit.errors import SchemaError
from llavakit.values import SamplingParams, Tool

TEXT = {"type": "string"}
FAULTS = [
    (
        {"type": "string", "pattern": "^(?!X)[A-Z]{3}$"},
        "",
        "'^(?!X)[A-Z]{3}$' cannot be used (look",
    ),
    ({"type": "string", "pattern": r"(a)\1"}, "", "backreferences"),
    ({"type": "string", "pattern": "("}, "", "unclosed group"),
    ({"type": "string", "pattern": 5}, "", "Expected string for 'pattern'"),
    ({"not": TEXT}, "", "'not' cannot be followed"),
    ({"if": TEXT, "then": TEXT}, "", "'if' and 'then' cannot be followed"),
    ({"type": "array", "items": TEXT, "uniqueItems": True}, "", "'uniqueItems'"),
    ({"type": "object", "patternProperties": {"^(?=a)": TEXT}}, "", "the pattern '^(?=a)'"),
    ({"$ref": "#/$defs/Gone"}, "", "refers to '#/$defs/Gone'"),
    ({"$ref": "https://example.org/schema"}, "", "refers to 'https://example.org/schema'"),
    ({"type": "string", "format": "nonsense"}, "", "the format 'nonsense' is not known"),
    ({"type": "strin"}, "", "'strin' is not a type of JSON"),
    ({"oneOf": [TEXT, TEXT]}, "", "write anyOf"),
    ({"allOf": [TEXT, {"type": "integer"}]}, "", "no value fits it"),
    ({"enum": []}, "", "no value fits it"),
    (5, "", "5 is not a schema"),
    ({"type": "object", "properties": 5}, "", "properties must be an object"),
    ({"type": "array", "items": {"not": TEXT}}, "[]", "'not'"),
    ({"prefixItems": [TEXT, {"not": TEXT}]}, "[1]", "'not'"),
    ({"anyOf": [TEXT, {"not": TEXT}]}, "", "'not'"),
    ({"additionalProperties": {"not": TEXT}}, "", "'not'"),
    ({"type": "object", "properties": {"deep": {"not": TEXT}}}, ".deep", "'not'"),
    ({"$ref": "#/$defs/Inner"}, ".hidden", "'not'"),
]


def schema_with(part, **more):
    return {
        "title": "P",
        "type": "object",
        "properties": {"fine": TEXT, "none": {"enum": []}, "bad": part, **more},
        "required": ["fine", "bad"],
        "$defs": {"Inner": {"type": "object", "properties": {"a": TEXT, "hidden": {"not": TEXT}}}},
    }


@pytest.mark.parametrize(("part", "below", "words"), FAULTS, ids=lambda one: str(one)[:40])
def test_the_field_of_a_schema_is_named(demo_backend, part, below, words):
    params = SamplingParams(json_schema=schema_with(part))
    with pytest.raises(SchemaError) as caught:
        demo_backend.generate("hello", params)
    told = str(caught.value)
    assert told.startswith(f"The schema 'P', field 'bad{below}': ") and words in told
    assert "\n" not in told and "start:" not in told and told.endswith(".")


@pytest.mark.parametrize("part", [{"not": TEXT}, {"type": "string", "pattern": "(?<=a)b"}])
def test_the_tool_of_several_is_named(demo_backend, part):
    tools = [
        Tool("fine", "", {"type": "object", "properties": {"a": TEXT}}),
        Tool("pay", "", {"type": "object", "properties": {"amount": part}}),
    ]
    with pytest.raises(SchemaError, match="the tool 'pay', field 'amount': "):
        demo_backend.generate("hello", tools=tools)


def test_the_fault_of_a_schema_that_refers_to_itself_is_found_in_its_own_field(demo_backend):
    node = {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            "code": {"type": "string", "pattern": "(?!a)b"},
        },
    }
    schema = {"title": "Tree", "$ref": "#/$defs/Node", "$defs": {"Node": node}}
    with pytest.raises(SchemaError, match="'Tree', field 'code': the pattern"):
        demo_backend.generate("hello", SamplingParams(json_schema=schema))


def test_a_schema_without_a_name_and_without_fields(demo_backend):
    with pytest.raises(SchemaError, match=r"^The schema: 'not' cannot"):
        demo_backend.generate("hello", SamplingParams(json_schema={"not": TEXT}))


@pytest.mark.parametrize("value", [{1}, float("nan"), object()])
def test_what_is_no_json_is_named_with_its_place(demo_backend, value):
    schema = schema_with({"type": "integer", "default": value})
    with pytest.raises(SchemaError, match=r"'P', at properties\.bad\.default: this is not JSON"):
        demo_backend.generate("hello", SamplingParams(json_schema=schema))
    with pytest.raises(SchemaError, match=r"tool 'pay', at properties\.bad\.default: "):
        demo_backend.generate("hello", tools=[Tool("pay", "", schema)])


def test_a_schema_that_holds_itself_is_told_without_end(demo_backend):
    schema = schema_with(TEXT)
    schema["properties"]["self"] = schema
    with pytest.raises(SchemaError, match=r"^The schema 'P': this is not JSON") as caught:
        demo_backend.generate("hello", SamplingParams(json_schema=schema))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("(?!a)b", r"^The regular expression '\(\?!a\)b' cannot be used: look-around"),
        ("(", r"^The regular expression '\(' cannot be used: unclosed group"),
        ("start: nothing", '^The grammar cannot be used: unknown name: "nothing"'),
        ("start: /(?!a)b/", "^The grammar cannot be used: look-around"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_one_sentence(demo_backend, grammar, words):
    with pytest.raises(SchemaError, match=words) as caught:
        demo_backend.generate("hello", SamplingParams(grammar=grammar))
    assert "\n" not in str(caught.value)
