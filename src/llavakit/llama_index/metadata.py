"""A model object of LlamaIndex apart from its answers: settings, metadata, copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import LLMMetadata, MessageRole
from pydantic import ConfigDict, Field, SecretStr, model_validator

from llavakit.arguments import to_params
from llavakit.documents.message import Attachment, page_images
from llavakit.errors import ParameterError
from llavakit.llama_index.policy_required import PolicyRequired
from llavakit.llama_index.structured import SchemaPrediction
from llavakit.model.catalog import context_length
from llavakit.settings import ModelSettings, key_from_environment
from llavakit.values import Image


class ModelMetadata(PolicyRequired, ModelSettings, SchemaPrediction):
    """The settings of a model, and its metadata for the framework; nothing is loaded."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    policy_field: ClassVar[str] = "source_policy"

    # Must not be serialised.
    api_key: SecretStr | None = Field(
        default_factory=key_from_environment, exclude=True, repr=False
    )

    @model_validator(mode="after")
    def _templates_are_the_models(self) -> Self:
        if self.query_wrapper_prompt is not None or self.messages_to_prompt not in (
            None,
            messages_to_prompt,
        ):
            raise ParameterError(
                "LLaVA writes prompts by the checkpoint's template: instead of "
                "messages_to_prompt or query_wrapper_prompt, name one with conv_mode."
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        # The framework warns of a name without "multi" where images are asked about.
        return "llava_multi_modal_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """What the framework plans with; loads the model only where no file has the answer."""
        return LLMMetadata(**self._metadata(self._context_window()))

    def _metadata(self, window: int | None) -> dict[str, Any]:
        known = {} if window is None else {"context_window": window}
        return {
            **known,
            "num_output": to_params(self._sampling()).max_tokens,
            "is_chat_model": True,
            "is_function_calling_model": True,
            "model_name": self._model_name,
            "system_role": MessageRole.SYSTEM,
        }

    def _known_window(self) -> int | None:
        if self.backend is not None:
            return self.backend.info.context_length
        limits = [limit for limit in (self.context_length, context_length(self.model)) if limit]
        return min(limits, default=None)

    def _context_window(self) -> int:
        return self._known_window() or self.backend_for().info.context_length

    @property
    def _model_name(self) -> str:
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    def _open_document(self, document: Attachment) -> list[Image]:
        return page_images(document, self.max_pages, self.policy)

    def to_payload(self) -> dict[str, Any]:
        """Describe the model for traces: settings that change answers; no keys, paths or pixels."""
        sampling = {k: v for k, v in self._sampling().items() if v is not None}
        metadata = LLMMetadata(**self._metadata(self._known_window())).model_dump()
        return {"class_name": self.class_name(), **metadata, **sampling}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Handlers of callbacks and rate limiters hold locks, and are shared on purpose.
        memo = {} if memo is None else memo
        for shared in (self.callback_manager, self.rate_limiter):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)
