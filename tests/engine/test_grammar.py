"""Constrained decoding with random weights: what the model writes fits, or says that it was cut."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import llguidance.hf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import llavakit
from llavakit import Completion, Message, SamplingParams
from llavakit.engine.grammar import GrammarCompiler, Matcher, unpack
from llavakit.engine.grammar_text import grammar_of, without
from llavakit.engine.schemas import closed
from llavakit.errors import SchemaError
from llavakit.local import LocalBackend
from llavakit.prompts.tools import CALL_START
from llavakit.streams import gather
from llavakit.values import Request, Tool
from tests.engine.random_schemas import SchemaMaker
from tests.tiny import TinyModel


@pytest.fixture(scope="module")
def backend(tiny: TinyModel) -> Iterator[LocalBackend]:
    backend = llavakit.load(tiny.path, max_concurrency=16)
    assert isinstance(backend, LocalBackend)
    yield backend
    backend.close()


def wild(seed: int, **given: Any) -> SamplingParams:
    """Any token that is allowed, almost equally likely."""
    return SamplingParams(**{"max_tokens": 120, "temperature": 3.0, "seed": seed, **given})


def completions(backend: LocalBackend, asked: list[SamplingParams], **options: Any) -> list[Any]:
    """The answers to all, asked together; an error stands for itself."""
    answers: list[Any] = []
    streams = [backend.stream("?", params, **options) for params in asked]
    for stream in streams:
        try:
            answers.append(gather(stream))
        except SchemaError as error:
            answers.append(error)
    return answers


def check_schemas(backend: LocalBackend, seeds: range) -> None:
    whole = 0
    for first in range(0, len(seeds), 64):
        some = seeds[first : first + 64]
        schemas = [SchemaMaker(seed).make() for seed in some]
        asked = [wild(seed, json_schema=one) for seed, one in zip(some, schemas, strict=True)]
        for schema, answer in zip(schemas, completions(backend, asked), strict=True):
            assert isinstance(answer, Completion), (answer, schema)
            if answer.finish_reason == "length":
                assert answer.usage.completion_tokens == 120
                continue
            assert answer.finish_reason == "stop"
            jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
            whole += 1
    assert whole > len(seeds) // 2, "too many were cut: the test would see nothing"


def test_answers_fit_random_schemas_or_say_that_they_were_cut(backend: LocalBackend):
    check_schemas(backend, range(40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_fit_a_thousand_random_schemas_or_say_that_they_were_cut(backend: LocalBackend):
    check_schemas(backend, range(1000, 2000))


@pytest.mark.parametrize(
    "expression",
    ["(yes|no|maybe)", r"\d{4}-\d{2}", "a/b{1,3}", r"a\/b", "[^/]{1,3}x", "(?i)[a-c]{2}", r"\\n"],
)
def test_answers_match_a_regular_expression(backend: LocalBackend, expression: str):
    for answer in completions(backend, [wild(seed, grammar=expression) for seed in range(4)]):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(expression, answer.text), answer.text


def test_answers_follow_a_lark_grammar(backend: LocalBackend):
    grammar = '// sums\nstart: sum\nsum: NUMBER ("+" NUMBER)~1..2\nNUMBER: /[1-9][0-9]?/\n'
    for answer in completions(backend, [wild(seed, grammar=grammar) for seed in range(4)]):
        assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,2}", answer.text)


def test_any_object_is_an_object(backend: LocalBackend):
    asked = [wild(seed, json_schema=True, max_tokens=400) for seed in range(4)]
    for answer in completions(backend, asked):
        assert answer.text.startswith("{")
        assert answer.finish_reason == "length" or isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize(
    "asked",
    [
        {"json_schema": {"type": "nonsense"}},
        {"json_schema": {"type": "string", "pattern": "("}},
        {"json_schema": {"$ref": "#/$defs/missing"}},
        {"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}},
        {"json_schema": {"enum": [{1, 2}]}},
        {"grammar": "(unclosed"},
        {"grammar": "ends with a backslash\\"},
        {"grammar": "start: missing_rule\n"},
    ],
)
def test_bad_schema_or_grammar_is_refused_with_one_sentence(backend: LocalBackend, asked: dict):
    with pytest.raises(SchemaError) as caught:
        backend.generate("?", wild(0, **asked))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 30


ADD = Tool(
    "add",
    "Adds two numbers.",
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"enum": ["x", "</tool_call>", "{"]},
        },
        "required": ["a", "b"],
    },
)
NOW = Tool("now", "The time.")
PARAMETERS = {tool.name: {"type": "object", **tool.parameters} for tool in (ADD, NOW)}


def check_calls(answer: Completion) -> None:
    """Whole calls fit the schemas of their tools; a cut one is left in the text."""
    for call in answer.tool_calls:
        jsonschema.validate(dict(call.arguments), PARAMETERS[call.name])
    assert CALL_START not in answer.text
    if answer.finish_reason == "tool_calls":
        assert answer.tool_calls and not answer.text


def test_required_tools_are_called_with_arguments_that_fit(backend: LocalBackend):
    asked = [wild(seed, max_tokens=300) for seed in range(8)]
    answers = completions(backend, asked, tools=[ADD, NOW], tool_choice="required")
    for answer in answers:
        check_calls(answer)
        assert answer.tool_calls
    assert {call.name for answer in answers for call in answer.tool_calls} == {"add", "now"}


def test_named_tool_is_the_only_one_called(backend: LocalBackend):
    asked = [wild(seed, max_tokens=300) for seed in range(6)]
    for answer in completions(backend, asked, tools=[ADD, NOW], tool_choice="now"):
        check_calls(answer)
        assert {call.name for call in answer.tool_calls} == {"now"}
        assert all(call.arguments == {} for call in answer.tool_calls)


def test_only_one_call_is_made_where_parallel_calls_are_off(backend: LocalBackend):
    asked = [wild(seed) for seed in range(6)]
    answers = completions(
        backend, asked, tools=[ADD], tool_choice="required", parallel_tool_calls=False
    )
    for answer in answers:
        check_calls(answer)
        assert (answer.finish_reason, len(answer.tool_calls)) == ("tool_calls", 1)


def test_free_choice_gives_text_or_calls_and_never_both(backend: LocalBackend):
    asked = [wild(seed, temperature=50.0) for seed in range(16)]
    for answer in completions(backend, asked, tools=[ADD, NOW], tool_choice="auto"):
        check_calls(answer)
        assert not (answer.text and answer.tool_calls)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["<", "t", "tool_call", "<tool_call", ">", "<tool_", "\n", "l>"])).map(
        "".join
    )
)
def test_the_expression_of_text_matches_exactly_what_holds_no_marker(text: str):
    matched = re.fullmatch(without(CALL_START), text) is not None
    assert matched == (CALL_START not in text)


def test_text_beside_tools_cannot_hold_the_start_of_a_call(tiny: TinyModel):
    tokenizer = tiny.processor.tokenizer
    compiler = GrammarCompiler(tokenizer, 264, [2])
    grammar = (
        f'start: / ?/ (text | call)\ncall: {json.dumps(CALL_START)} "x"\ntext: TEXT\n'
        f"TEXT: /{without(CALL_START)}/\n"
    )
    matcher = compiler.matcher(grammar)
    *before, last = tokenizer.encode(f"see {CALL_START}", add_special_tokens=False)
    for token in before:
        matcher.accept(token)
    matcher.fill()
    allowed = bool(matcher.words[last // 32] >> (last % 32) & 1)
    assert not allowed


def test_matcher_that_breaks_fails_its_own_request_only(backend: LocalBackend, monkeypatch):
    params = wild(3, grammar="[a-z]{20}", max_tokens=30)
    expected = backend.generate("?", params).text
    fill = Matcher.fill
    broken: list[Matcher] = []

    def breaking(self: Matcher) -> None:
        broken[:] = broken or [self]
        if broken[0] is self:
            raise RuntimeError("broken")
        fill(self)

    monkeypatch.setattr(Matcher, "fill", breaking)
    failed, answers = 0, []
    for stream in [backend.stream("?", params) for _ in range(3)]:
        try:
            answers.append(gather(stream).text)
        except llavakit.errors.EngineError as error:
            assert "broken" in str(error)
            failed += 1
    assert (failed, answers) == (1, [expected] * 2)


def test_matcher_that_gives_up_raises_rather_than_ending_the_answer(tiny: TinyModel):
    tokenizer = llguidance.hf.from_tokenizer(tiny.processor.tokenizer, n_vocab=264, eos_token=[2])
    limits = llguidance.LLParserLimits(max_lexer_states=5)
    grammar = "start: /[a-z ]{3,300}(foo|bar)+[0-9]{5,100}/"
    matcher = Matcher(llguidance.LLMatcher(tokenizer, grammar, limits=limits, log_level=0), 264)
    with pytest.raises(SchemaError, match=r"too complex \(lexer error"):
        for _ in range(40):
            matcher.fill()
            matcher.accept(ord("f") + 5)


def walk(compiler: GrammarCompiler, tokenizer: Any, grammar: str, seed: int) -> str:
    """What a model without any preference writes."""
    numbers, matcher, ids = random.Random(seed), compiler.matcher(grammar), []
    while not matcher.finished:
        matcher.fill()
        allowed = unpack(matcher.words[None], len(tokenizer))[0].nonzero().flatten().tolist()
        token = numbers.choice(allowed)
        if token == tokenizer.eos_token_id:
            break
        matcher.accept(token)
        ids.append(token)
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_tokens_of_several_characters_and_names_with_spaces(demo_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(demo_dir)
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    schema = {
        "type": "object",
        "properties": {
            "the colour": {"enum": ["light blue", "red"]},
            "how many": {"type": "integer", "minimum": 1, "maximum": 12},
            "a note": {"type": "string", "maxLength": 12},
        },
        "required": ["the colour", "how many"],
    }
    request = Request((), SamplingParams(json_schema=schema))
    for seed in range(20):
        text = walk(compiler, tokenizer, grammar_of(request) or "", seed)
        jsonschema.validate(json.loads(text), schema)


# Small on purpose: a schema and a value that fits it must meet by chance.
names = st.sampled_from(["a", "b"])
leaves = st.sampled_from(
    [{"type": "integer"}, {"const": 0}, {"enum": [1, "x"]}, {"type": "string"}, {}]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(names, inner, max_size=2),
            "required": st.lists(names, max_size=1),
            "additionalProperties": st.booleans() | inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "$ref": st.just("#/$defs/d"),
        },
    )


A_OPEN = {"properties": {"a": {}}}

schemas = st.recursive(leaves, objects, max_leaves=6)
values = st.recursive(
    st.sampled_from([0, 1, "x", None]),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=4,
)


def fits(value: Any, schema: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@settings(max_examples=400, deadline=None)
@given(schema=objects(schemas), definition=objects(leaves), value=values)
@example(schema={"not": A_OPEN}, definition={}, value={"b": 0})
@example(schema={"not": {"$ref": "#/$defs/d"}}, definition=A_OPEN, value={"b": 0})
@example(schema={"oneOf": [A_OPEN, {"properties": {"b": {}}}]}, definition={}, value={"a": 0})
def test_what_fits_the_closed_schema_fits_the_open_one(schema, definition, value):
    definition.pop("$ref", None)  # it would refer to itself without end
    opened = {**schema, "$defs": {"d": definition}}
    if fits(value, closed(opened)):
        assert fits(value, opened)


def test_listed_properties_are_the_only_ones():
    schema = {
        "properties": {"a": {"items": {"properties": {"b": {}}}}},
        "$defs": {"d": {"properties": {"c": {}}}},
    }
    strict = closed(schema)
    assert strict["additionalProperties"] is False
    assert strict["properties"]["a"]["items"]["additionalProperties"] is False
    assert strict["$defs"]["d"]["additionalProperties"] is False
    assert "additionalProperties" not in schema


@pytest.mark.parametrize(
    "schema",
    [
        {
            "properties": {"kind": {"const": "k"}},
            "required": ["kind"],
            "anyOf": [{"properties": {"x": {"const": 1}}, "required": ["x"]}],
        },
        {
            "allOf": [
                {"$ref": "#/$defs/base"},
                {"properties": {"x": {"const": 1}}, "required": ["x"]},
            ],
            "$defs": {"base": {"properties": {"kind": {"const": "k"}}, "required": ["kind"]}},
        },
    ],
)
def test_objects_of_several_schemas_can_still_be_written(backend: LocalBackend, schema: dict):
    assert fits({"kind": "k", "x": 1}, closed({"type": "object", **schema}))


def test_schema_is_told_to_a_message_without_one(backend: LocalBackend):
    """The grammar holds whatever the conversation says."""
    message = Message("user", "Write a poem.")
    answer = backend.generate([message], wild(1, json_schema={"const": {"a": [1, None]}}))
    assert json.loads(answer.text) == {"a": [1, None]}


def test_the_grammar_of_tools_forbids_the_start_of_a_call_in_text(tiny):
    tokenizer = tiny.processor.tokenizer
    request = Request((Message("user", "?"),), tools=(Tool("now"),))
    matcher = GrammarCompiler(tokenizer, 264, [2]).matcher(grammar_of(request))
    *before, last = tokenizer.encode(f"see {CALL_START}", add_special_tokens=False)
    for token in before:
        matcher.accept(token)
    matcher.fill()
    assert not allowed_by(matcher, last)


def test_a_model_s_own_token_may_begin_a_call(demo_dir):
    tokenizer = AutoTokenizer.from_pretrained(demo_dir)
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    request = Request((Message("user", "?"),), tools=(Tool("now"),), tool_choice="required")
    matcher = compiler.matcher(grammar_of(request, compiler.spell))
    matcher.fill()
    assert allowed_by(matcher, tokenizer.convert_tokens_to_ids("<tool_call>"))


def allowed_by(matcher, token):
    return bool(matcher.words[token // 32] >> (token % 32) & 1)
