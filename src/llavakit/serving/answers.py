"""llavakit's chunks and completions -> OpenAI's JSON; plain dictionaries, made once a token."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llavakit.values import CUT_CALLS, Chunk, Completion, CutCall, TokenLogprob, ToolCall, Usage

LOWEST = -9999.0
"""Sent for a token of no probability: JSON knows no infinity."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all pieces of one answer have in common."""

    model: str
    fingerprint: str | None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Completion], *, logprobs: bool) -> dict[str, Any]:
        """A ``chat.completion``."""
        return {
            **self._head("chat.completion"),
            "choices": [
                _choice(index, completion, logprobs) for index, completion in enumerate(completions)
            ],
            "usage": usage([completion.usage for completion in completions]),
        }

    def piece(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        finish: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        """A ``chat.completion.chunk`` of one choice."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(logprobs) if logprobs else None,
            "finish_reason": finish,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def total(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The chunk of the usage, which has no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(usages)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def delta(chunk: Chunk, calls: int) -> dict[str, Any]:
    """What a chunk adds to the message.

    A call is emitted whole, in one event. OpenAI's notation cannot say that a call was cut, and its
    clients complete a part of one, so that a cut call is put only into a field of llavakit's own.

    Args:
        chunk: of the answer.
        calls: how many were emitted before.
    """
    result: dict[str, Any] = {}
    if chunk.text:
        result["content"] = chunk.text
    if chunk.tool_calls:
        result["tool_calls"] = [
            {"index": index, **_call(call)} for index, call in enumerate(chunk.tool_calls, calls)
        ]
    return result | _cut(chunk.cut_calls)


def usage(usages: Sequence[Usage]) -> dict[str, Any]:
    """The tokens of all choices; their one prompt counts once."""
    total = Usage.of_choices(usages)
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": total.cached_tokens,
            "image_tokens": total.image_tokens,
        },
    }


def to_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _choice(index: int, completion: Completion, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if completion.tool_calls and not completion.text else completion.text,
        "refusal": None,
    }
    if completion.tool_calls:
        message["tool_calls"] = [_call(call) for call in completion.tool_calls]
    return {
        "index": index,
        "message": message | _cut(completion.cut_calls),
        "logprobs": _logprobs(completion.logprobs) if logprobs else None,
        "finish_reason": completion.finish_reason,
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": to_json(call.arguments).decode()},
    }


def _cut(calls: Sequence[CutCall]) -> dict[str, Any]:
    if not calls:
        return {}
    return {CUT_CALLS: [{"name": call.name, "arguments": call.arguments} for call in calls]}


def token_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log probabilities and those of the likeliest alternatives."""
    return [
        {
            **_token(token.token, token.logprob),
            "top_logprobs": [_token(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": token_logprobs(tokens), "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # U+FFFD stands for a part of a character, whose bytes are not known here.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": max(logprob, LOWEST),
        "bytes": list(text.encode()) if whole else None,
    }
