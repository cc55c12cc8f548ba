"""How sure a model was of what it read: the probabilities of its tokens, for each field of data.

Probabilities are the model's own, before a grammar forbids tokens. What a schema forces (names of
fields, quotes, the brace that ends an object which the model would have gone on with) says nothing
about what was read; so of data only the tokens count that hold characters of a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llavakit.values import TokenLogprob

_SPACE = re.compile(r"[ \t\r\n]*")
_JSON = json.JSONDecoder()
_LOOK_AHEAD = 32  # characters that a token may be searched within

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure the model was of an answer: the probabilities of its sampled tokens.

    They say how the model hesitated, and not how often it is right; but what it hesitated at is
    where it is wrong more often, so sort by ``lowest`` and have people look at the first ones.

    Attributes:
        mean: the geometric mean, from 0 to 1.
        lowest: that of the least probable token.
        fields: of data, the same for each value, by its JSON Pointer (RFC 6901): ``"/total"``,
            ``"/lines/0/price"``. ``mean`` and ``lowest`` are then those of all values.
    """

    mean: float
    lowest: float
    fields: Mapping[str, Confidence] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The confidence in types of JSON; ``fields`` only where there are some."""
        own: dict[str, Any] = {"mean": self.mean, "lowest": self.lowest}
        fields = {name: one.to_dict() for name, one in self.fields.items()}
        return own | ({"fields": fields} if fields else {})

    def metadata(self) -> dict[str, Any]:
        """The same as a flat dictionary of numbers and strings, as vector stores keep it."""
        own = {"confidence": self.mean, "confidence_lowest": self.lowest}
        fields = {name: [one.mean, one.lowest] for name, one in self.fields.items()}
        return own | ({"confidence_fields": json.dumps(fields)} if fields else {})


def confidence_of(tokens: Sequence[TokenLogprob]) -> Confidence | None:
    """Return the confidence of sampled tokens; None where there are none."""
    if not tokens:
        return None
    logprobs = [min(0.0, token.logprob) for token in tokens]
    mean = math.exp(sum(logprobs) / len(logprobs))
    return Confidence(round(mean, 4), round(math.exp(min(logprobs)), 4))


def confidence_of_data(text: str, tokens: Sequence[TokenLogprob]) -> Confidence | None:
    """Return the confidence of an answer that is JSON, with that of each value.

    Args:
        text: the answer, valid JSON.
        tokens: those that it was sampled as.
    """
    spans = token_spans(text, [token.token for token in tokens])
    counted: set[int] = set()
    fields = {}
    for pointer, (begin, end) in value_spans(text):
        inside = [at for at, (left, right) in enumerate(spans) if left < end and right > begin]
        known = confidence_of([tokens[at] for at in inside])
        if known is not None:
            fields[pointer] = known
            counted.update(inside)
    own = confidence_of([tokens[at] for at in sorted(counted)] or tokens)
    return own and Confidence(own.mean, own.lowest, fields)


def token_spans(text: str, tokens: Sequence[str]) -> list[Span]:
    """Return where in a text its tokens stand.

    Each token was decoded by itself, so that it may lack the space at its beginning, or be a part
    of a character (U+FFFD); the first one may be a space that the text has not. A token that is
    not found stands at the place that is reached, and covers the character there.
    """
    spans, at, in_character = [], 0, False
    for token in tokens:
        found = _find(text, token, at)
        if found < 0 or (text[at:found].strip() and not in_character):
            spans.append((at, at + ("\ufffd" in token)))
            in_character = in_character or "\ufffd" in token
            continue
        spans.append((found, found + len(token)))
        at, in_character = found + len(token), False
    return spans


def _find(text: str, token: str, at: int) -> int:
    if token.strip():
        return text.find(token, at, at + len(token) + _LOOK_AHEAD)
    return at if token and text.startswith(token, at) else -1


def value_spans(text: str) -> Iterator[tuple[str, Span]]:
    """Yield the JSON Pointer of each value that holds no others, and where its characters stand.

    Of a string that is what stands within its quotes; of an empty one, the quotes.
    """
    found: list[tuple[str, Span]] = []
    _scan(text, _skip(text, 0), "", found)
    yield from found


def _scan(text: str, at: int, pointer: str, found: list[tuple[str, Span]]) -> int:
    """Note the values of the JSON that begins at a place; return where it ends."""
    if text[at] not in "{[":
        end = _JSON.raw_decode(text, at)[1]
        within_quotes = text[at] == '"' and end > at + 2
        found.append((pointer, (at + 1, end - 1) if within_quotes else (at, end)))
        return end
    is_object, begin, number = text[at] == "{", at, 0
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        name = str(number)
        if is_object:
            name, at = _JSON.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # the colon
        escaped = name.replace("~", "~0").replace("/", "~1")
        at = _skip(text, _scan(text, at, f"{pointer}/{escaped}", found))
        at = _skip(text, at + 1) if text[at] == "," else at
        number += 1
    if number == 0:
        found.append((pointer, (begin, at + 1)))
    return at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing, too
    return match.end()
