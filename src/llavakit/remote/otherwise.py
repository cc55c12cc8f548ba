"""How a server is asked again that refused a request because of how it was started or templated."""

from __future__ import annotations

import re
from dataclasses import replace

from llavakit.remote.dialects import Dialect

_NO_PARSER = re.compile(
    r"--tool-call-parser|--enable-auto-tool-choice|requires --jinja|does not support tools"
)
"""The words of vLLM, llama.cpp and Ollama for tools that they do not find calls of."""
_SHORT_IDS = re.compile(r"tool call ids?\b.{0,80}(alphanumeric|a-z, A-Z, 0-9)", re.IGNORECASE)
"""The words of Mistral's chat templates, and of its tokenizer in vLLM, for ids of another form."""


_TURNS = re.compile(r"roles must alternate|single tool-calls at once", re.IGNORECASE)
"""The words of templates that nothing but the assistant may follow a tool's result in (Mistral's),
or that have one call a turn (Llama's)."""


def otherwise(dialect: Dialect, refusal: str) -> Dialect | None:
    """Return how a server is asked that refused a conversation with tools, calls or results.

    Args:
        dialect: as it was asked.
        refusal: its words.

    Returns:
        None where none of this was the reason, or the server is asked so already.
    """
    speakable = dialect.can_speak and not dialect.speaks
    if speakable and (_NO_PARSER.search(refusal) or _TURNS.search(refusal)):
        return dialect.with_tools_in_prompt()
    if not dialect.short_ids and _SHORT_IDS.search(refusal):
        return replace(dialect, short_ids=True)
    return None


def is_of_the_server(refusal: str) -> bool:
    """Return whether the next conversation would be refused too, and not this one alone."""
    return _TURNS.search(refusal) is None
