"""Answers as the Responses API writes them: one object, or the events by which it grows.

Both are made of the same items, so that the last event of a stream holds what a whole answer is.
https://developers.openai.com/api/reference/resources/responses/streaming-events
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from llavakit.serving.answers import to_json, token_logprobs
from llavakit.serving.errors import Refusal
from llavakit.serving.notation import Served
from llavakit.serving.responses.schema import ResponsesRequest
from llavakit.values import CUT_CALLS, Chunk, Completion, CutCall, TokenLogprob, ToolCall, Usage

_CODES = {"rate_limit_error": "rate_limit_exceeded"}
_LENGTH = "max_output_tokens"


class ResponseWriter:
    """Writes one response.

    Args:
        asked: the request, whose settings the response repeats.
        served: the model that answers.
        logprobs: whether the text has its log probabilities.
    """

    def __init__(self, asked: ResponsesRequest, served: Served, *, logprobs: bool) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self._asked = asked
        self._served = served
        self._logprobs = logprobs
        self._created = int(time.time())
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._text: _Text | None = None
        self._cut: tuple[CutCall, ...] = ()
        self._finish = "stop"

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        (completion,) = completions
        for chunk in (
            Chunk(text=completion.text, logprobs=completion.logprobs),
            Chunk(tool_calls=completion.tool_calls, cut_calls=completion.cut_calls),
            Chunk(finish_reason=completion.finish_reason),
        ):
            list(self.chunk(0, chunk))
        list(self._close_all())
        return self._response(self._status(), completion.usage)

    def begin(self) -> Iterable[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        if chunk.text or (chunk.logprobs and self._text is not None):
            yield from self._say(chunk.text, chunk.logprobs)
        for call in chunk.tool_calls:
            yield from self._call(call)
        self._cut += chunk.cut_calls
        if chunk.finish_reason is not None:
            self._finish = chunk.finish_reason

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        yield from self._close_all()
        status = self._status()
        yield self._event(f"response.{status}", response=self._response(status, usages[0]))

    def failed(self, reason: Refusal) -> Iterable[bytes]:
        error = {"code": _CODES.get(reason.kind, reason.code), "message": reason.message}
        failed = self._response("failed") | {"error": error}
        yield self._event("response.failed", response=failed)
        # Clients raise an error for an event that holds one, and pass the one above over.
        yield self._event("error", **reason.body(), **error, param=reason.param)

    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _say(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterable[bytes]:
        if self._text is None:
            self._text = _Text(len(self._items))
            self._items.append(self._text.item("in_progress"))
            yield self._added(self._text.index)
            yield self._part("added", self._text, {"text": "", "logprobs": []})
        emitted = token_logprobs(logprobs) if self._logprobs else []
        self._text.add(text, emitted)
        where = self._text.where
        yield self._event("response.output_text.delta", **where, delta=text, logprobs=emitted)

    def _call(self, call: ToolCall) -> Iterable[bytes]:
        yield from self._close_text()
        index = len(self._items)
        arguments = to_json(call.arguments).decode()
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": arguments,
        }
        self._items.append({**item, "status": "in_progress", "arguments": ""})
        yield self._added(index)
        where = {"item_id": item["id"], "output_index": index}
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **where, delta=arguments)
        yield self._event(f"{kind}.done", **where, name=call.name, arguments=arguments)
        yield self._done(index, item)

    def _close_all(self) -> Iterable[bytes]:
        if not self._items:  # an empty answer is a message without words
            yield from self._say("", ())
        yield from self._close_text()

    def _close_text(self) -> Iterable[bytes]:
        text, self._text = self._text, None
        if text is None:
            return
        whole = {"text": text.text, "logprobs": text.logprobs}
        yield self._event("response.output_text.done", **text.where, **whole)
        yield self._part("done", text, whole)
        yield self._done(text.index, text.item(self._status()))

    def _part(self, change: str, text: _Text, content: dict[str, Any]) -> bytes:
        part = {"type": "output_text", "annotations": [], **content}
        return self._event(f"response.content_part.{change}", **text.where, part=part)

    def _added(self, index: int) -> bytes:
        item = self._items[index]
        return self._event("response.output_item.added", output_index=index, item=item)

    def _done(self, index: int, item: dict[str, Any]) -> bytes:
        self._items[index] = item
        return self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **content: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + to_json(data) + b"\n\n"

    def _response(self, status: str, usage: Usage | None = None) -> dict[str, Any]:
        asked = self._asked
        repeated = asked.model_dump(mode="json", by_alias=True)
        incomplete = status == "incomplete"
        response = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": _LENGTH} if incomplete else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "model": self._served.model,
            "output": list(self._items),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": (repeated["text"] or {}).get("format") or {"type": "text"}},
            "tool_choice": repeated["tool_choice"] or "auto",
            "tools": repeated["tools"] or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": asked.user,
            "metadata": asked.metadata or {},
        }
        if self._cut:
            cut = [{"name": call.name, "arguments": call.arguments} for call in self._cut]
            response[CUT_CALLS] = cut
        return response


class _Text:
    """The message of an answer while it grows."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"msg_{uuid.uuid4().hex}"
        self.logprobs: list[dict[str, Any]] = []
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(self._parts)

    @property
    def where(self) -> dict[str, Any]:
        """How events name it."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def add(self, text: str, logprobs: Sequence[dict[str, Any]]) -> None:
        """Take what comes next."""
        self._parts.append(text)
        self.logprobs += logprobs

    def item(self, status: str) -> dict[str, Any]:
        """The message as an item of the output."""
        part = {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        }
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [part] if status != "in_progress" else [],
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
