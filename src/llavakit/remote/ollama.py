"""Ollama's own notation of a chat (https://docs.ollama.com/api/chat), from and to OpenAI's.

Its OpenAI-compatible route answers 200 where parts of the prompt did not fit: it takes the oldest
messages away (``chatPrompt`` in https://github.com/ollama/ollama/blob/main/server/prompt.go). It
also keeps the sampling settings of the model's file, such as a repetition penalty of 1.1, which it
has no fields for, and a context of 4,096 tokens whatever the model can. In its own notation all of
that can be said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llavakit.errors import ParameterError
from llavakit.remote.address import RemoteConfig
from llavakit.remote.fields import set_once
from llavakit.remote.lines import LineReader

PATH = "/api/chat"
OLDEST = (0, 12, 6)
"""The first version that can be told not to take parts of a prompt away (``truncate``)."""
_OPTIONS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
_NEUTRAL = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What the model's file may set, and a request of OpenAI's leaves out where it is not wanted."""
_OF_OPENAI = ("stream_options", "tool_choice", "parallel_tool_calls", "response_format")
_IMAGE_MARK = "[img]"
"""Where this stands in a message with images, Ollama puts the next one."""


def to_fields(fields: Mapping[str, Any], config: RemoteConfig) -> dict[str, Any]:
    """Return the body beside the messages, of the fields of a chat completion.

    Raises:
        ParameterError: ``extra_body`` sets an option that an argument sets to something else.
    """
    options: dict[str, Any] = dict(_NEUTRAL)
    options |= {_OPTIONS[name]: value for name, value in fields.items() if name in _OPTIONS}
    if config.context_length is not None:
        options["num_ctx"] = config.context_length
    options = set_once(options, fields.get("options") or {}, "the option ")
    known = (*_OPTIONS, *_OF_OPENAI, "options", "stream", "reasoning_effort")
    body = {name: value for name, value in fields.items() if name not in known}
    body |= {"stream": True, "truncate": False, "shift": False, "options": options}
    form = fields.get("response_format")
    if form is not None:
        schema = form.get("json_schema")
        body["format"] = "json" if schema is None else schema["schema"]
    if "reasoning_effort" in fields:
        effort = fields["reasoning_effort"]
        body.setdefault("think", False if effort == "none" else effort)
    return body


def to_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages of OpenAI's notation as Ollama's: images in their order, calls with objects.

    Raises:
        ParameterError: a message holds a video.
    """
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for message in messages:
        told = _parts(message["role"], message.get("content"))
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            names |= {call["id"]: call["function"]["name"] for call in calls}
            told[-1]["tool_calls"] = [_call(number, call) for number, call in enumerate(calls)]
        if message["role"] == "tool":
            identity = message["tool_call_id"]
            for one in told:
                one |= {"tool_call_id": identity, "tool_name": names.get(identity, "")}
        found += told
    return found


def _parts(role: str, content: Any) -> list[dict[str, Any]]:
    """The messages of one turn. Ollama shows the images of a message before its text, so that a
    text before an image is a message of its own.
    """
    if not isinstance(content, list):
        return [{"role": role, "content": content or ""}]
    found: list[dict[str, Any]] = []
    for part in content:
        last = found[-1] if found else None
        if part["type"] == "text":
            text = part["text"]
            if last is None or (last.get("images") and _IMAGE_MARK in last["content"] + text):
                found.append({"role": role, "content": text})
            else:
                last["content"] += text
        elif part["type"] == "image_url":
            image = part["image_url"]["url"].partition(",")[2]
            if last is None or last["content"]:
                found.append({"role": role, "content": "", "images": [image]})
            else:
                last.setdefault("images", []).append(image)
        else:
            raise ParameterError("Ollama takes no videos; give frames as images.")
    return found or [{"role": role, "content": ""}]


def _call(number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    told = {"index": number, "name": function["name"]}
    return {"id": call["id"], "function": {**told, "arguments": json.loads(function["arguments"])}}


class AnswerReader(LineReader):
    """Takes bytes of Ollama's answer as they come, gives events of a chat completion as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def _take(self, line: str) -> Iterator[str]:
        if not line.strip():
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, Mapping) or "error" in event:
            yield line  # what is no answer is judged as everywhere
            return
        yield json.dumps(self._event(event))
        if event.get("done"):
            yield "[DONE]"

    def _event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        message = event.get("message") or {}
        delta: dict[str, Any] = {"content": message.get("content") or ""}
        calls = []
        for call in message.get("tool_calls") or ():
            calls.append({**call, "index": self._calls})  # its own begins anew in each event
            self._calls += 1
        if calls:
            delta["tool_calls"] = calls
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if event.get("logprobs"):
            choice["logprobs"] = {"content": event["logprobs"]}
        if not event.get("done"):
            return {"choices": [choice]}
        choice["finish_reason"] = event.get("done_reason") or "stop"
        usage = {
            "prompt_tokens": event.get("prompt_eval_count"),
            "completion_tokens": event.get("eval_count"),
        }
        return {"choices": [choice], "usage": usage}
