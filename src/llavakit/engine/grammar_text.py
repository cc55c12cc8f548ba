"""The Lark grammar of what was asked for: JSON of a schema, an expression, or calls of tools.

In the notation of https://github.com/guidance-ai/llguidance. White space in JSON is off: a weak
model that may write it writes little else. Every grammar may begin with one space, because models
with a Vicuna prompt were trained to write one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llavakit.engine.schema_faults import not_json_at, schema_named, tool_named
from llavakit.engine.schemas import closed, is_combined
from llavakit.errors import SchemaError
from llavakit.prompts.tools import CALL_END, CALL_START, compact_json
from llavakit.values import Request, Tool

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
START_RULE = re.compile(r"^\s*start\s*:", re.MULTILINE)


def quoted(text: str) -> str:
    """Return a literal of a grammar."""
    return json.dumps(text, ensure_ascii=False)


def grammar_of(request: Request, spell: Callable[[str], str] = quoted) -> str | None:
    """Return the Lark grammar that a request's answer must follow; None if it is free.

    Args:
        request: what is asked.
        spell: how a marker such as ``<tool_call>`` is written in the grammar; a tokenizer may
            have a token of its own for it (see :meth:`GrammarCompiler.spell`).

    Raises:
        SchemaError: a schema that is not JSON.
    """
    params = request.params
    if params.grammar is not None:
        if START_RULE.search(params.grammar):
            return params.grammar
        return f"start: / ?/ answer\nanswer: {_regex(params.grammar)}\n"
    if request.tools and request.tool_choice != "none":
        return _tool_grammar(request, spell)
    if params.json_schema is not None:
        return f"start: / ?/ answer\nanswer: {_answer(request)}\n"
    return None


def _answer(request: Request) -> str:
    schema = request.params.json_schema
    known = schema if isinstance(schema, Mapping) else {"type": "object"}
    return json_of(known, schema_named(known))


def _regex(expression: str) -> str:
    """A Lark literal, which ends at a bare slash or line break; an empty one is a comment."""
    escapes = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}
    inner = re.sub(
        r"\\.|/|\n", lambda found: escapes.get(found[0], found[0]), expression, flags=re.S
    )
    return f"/(?:{inner})/"


def json_of(schema: Mapping[str, Any], subject: str) -> str:
    """Return the grammar of JSON of a schema.

    Args:
        schema: of JSON.
        subject: how errors call it.

    Raises:
        SchemaError: it is not JSON.
    """
    try:
        limited = {"x-guidance": _COMPACT, **closed(schema)}
        return f"%json {json.dumps(limited, allow_nan=False)}"
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        place = not_json_at(schema)
        raise SchemaError(
            f"{subject}{f', at {place}' if place else ''}: this is not JSON ({error}); a schema "
            "holds dicts with string keys, lists, strings, numbers, booleans and None."
        ) from error


def _tool_grammar(request: Request, spell: Callable[[str], str]) -> str:
    """Text or calls; only calls if one is required; text never holds the start of a call.

    With a schema beside the tools, what is not a call is JSON of that schema.
    """
    choice = request.tool_choice
    tools = [tool for tool in request.tools if choice in ("auto", "required", tool.name)]
    calls = "call+" if request.parallel_tool_calls else "call"
    start = calls if choice != "auto" else f"text | {calls}"
    lines = [
        f"start: / ?/ ({start})",
        f"call: {spell(CALL_START)} ({' | '.join(f'c{n}' for n in range(len(tools)))}) "
        f"{spell(CALL_END)}",
        *(f"c{number}: {_call(tool)}" for number, tool in enumerate(tools)),
    ]
    if choice == "auto" and request.params.json_schema is not None:
        lines.append(f"text: {_answer(request)}")
    elif choice == "auto":
        lines += ["text: TEXT", f"TEXT: /{without(CALL_START)}/"]
    return "\n".join(lines) + "\n"


def without(marker: str) -> str:
    """Return a regular expression of the texts that do not hold a marker.

    It needs neither complements nor intersections, which not every server's grammars have.

    Args:
        marker: letters, digits, ``_``, ``<`` and ``>``, beginning with a character that does not
            come again: a text holds it only behind one of these.
    """
    first, rest = marker[0], marker[1:]
    # What may follow the first character, up to its next occurrence: from the last one inwards.
    follows = f"(?:[^{first}{rest[-1]}][^{first}]*)?"
    for letter in reversed(rest[:-1]):
        follows = f"(?:[^{first}{letter}][^{first}]*|{letter}{follows})?"
    return f"[^{first}]*(?:{first}{follows})*"


def _call(tool: Tool) -> str:
    head = f'{{"name":{compact_json(tool.name)},"arguments":'
    parameters = {"type": "object", **tool.parameters}
    if not (parameters.get("properties") or is_combined(parameters)):
        # A tool without arguments: an object without properties would otherwise admit any.
        parameters["additionalProperties"] = False
    return f'{quoted(head)} {json_of(parameters, tool_named(tool.name))} "}}"'
