"""llavakit's chunks and completions -> OpenAI's JSON; plain dictionaries, made once a token."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llavakit.values import Chunk, Completion, TokenLogprob, Usage

_LOWEST = -9999.0
"""Told for a token of no probability: JSON knows no infinity."""


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


def delta(chunk: Chunk) -> dict[str, Any]:
    """What a chunk adds to the message."""
    result: dict[str, Any] = {}
    if chunk.text:
        result["content"] = chunk.text
    if chunk.tool_calls:
        result["tool_calls"] = [
            {
                "index": piece.index,
                **({} if piece.id is None else {"id": piece.id, "type": "function"}),
                "function": {
                    **({} if piece.name is None else {"name": piece.name}),
                    "arguments": piece.arguments,
                },
            }
            for piece in chunk.tool_calls
        ]
    return result


def usage(usages: Sequence[Usage]) -> dict[str, Any]:
    """The tokens of all choices; their one prompt counts once."""
    first = usages[0]
    completion = sum(one.completion_tokens for one in usages)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {
            "cached_tokens": first.cached_tokens,
            "image_tokens": first.image_tokens,
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
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": to_json(call.arguments).decode()},
            }
            for call in completion.tool_calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(completion.logprobs) if logprobs else None,
        "finish_reason": completion.finish_reason,
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token(token.token, token.logprob),
            "top_logprobs": [_token(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # U+FFFD stands for a part of a character, whose bytes are not known here.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": max(logprob, _LOWEST),
        "bytes": list(text.encode()) if whole else None,
    }
