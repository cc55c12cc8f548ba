"""What the fields of all requests have in common, whichever path they are sent to.

Strict on purpose: an unknown field, or one of another type, is an error and never dropped.
Beside this module, each has one subject: ``messages`` the conversation and its content blocks,
``chat_schema`` the bodies of ``/v1/chat/completions`` and ``/tokenize``, ``completions`` that of
``/v1/completions``, and ``responses/schema`` that of ``/v1/responses``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SchemaObject: TypeAlias = dict[str, Any]
FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
INT64 = 2**63 - 1
NO_EFFECT = "Has no effect"
"""How the description of a field begins that is taken and changes nothing."""


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer; JSON does not distinguish 4.0 from 4."""


class CacheHint(Strict):
    """What all blocks, messages and tools may say about caching, in Anthropic's notation."""

    cache_control: dict[str, Any] | None = Field(
        default=None, description=f"{NO_EFFECT}: prefixes are found by their content."
    )


class NoEffect(Strict):
    """Fields that clients send and that change no answer of LLaVA."""

    user: str | None = Field(
        default=None, description=f"{NO_EFFECT}: a name for the client's user."
    )
    store: bool | None = Field(default=None, description=f"{NO_EFFECT}: nothing is stored.")
    metadata: dict[str, str] | None = Field(
        default=None, description=f"{NO_EFFECT}: notes on a stored answer."
    )
    safety_identifier: str | None = Field(
        default=None, description=f"{NO_EFFECT}: a name for the client's user."
    )
    prompt_cache_key: str | None = Field(
        default=None, description=f"{NO_EFFECT}: prefixes are found by their content."
    )
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        default=None, description=f"{NO_EFFECT}: prefixes are kept while there is memory."
    )
    service_tier: Literal["auto", "default"] | None = Field(
        default=None, description=f"{NO_EFFECT}: there is one tier."
    )
