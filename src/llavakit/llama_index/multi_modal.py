"""``LLaVAMultiModal``: for programs that were written for ``MultiModalLLM``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.multi_modal_llms import MultiModalLLM, MultiModalLLMMetadata

from llavakit.llama_index.content_blocks import flattened, to_image_block
from llavakit.llama_index.llm import LLaVA, acompletions, completions
from llavakit.llama_index.responses import to_completion


class MultiModalMetadata(LLMMetadata, MultiModalLLMMetadata):  # type: ignore[misc]
    """The metadata of both of the framework's interfaces."""


class LLaVAMultiModal(LLaVA, MultiModalLLM):
    """:class:`LLaVA` whose completions take images, as ``MultiModalLLM`` has them.

    >>> llm = LLaVAMultiModal(model="demo", temperature=0)
    >>> llm.complete(
    ...     "What colour is the circle?", image_documents=[ImageDocument(image_path="circle.png")]
    ... ).text  # doctest: +SKIP
    'red'

    ``image_documents`` are nodes, documents, image blocks, or anything that
    :class:`llavakit.Image` takes, one or (nested) lists of them; they stand before the
    prompt. Of a node only its image is used: its text belongs in the prompt. A plain
    subclass of ``MultiModalLLM`` fails in every call since llama-index-core 0.14.16; this is
    an ``LLM`` as well, and chats like one.
    """

    @classmethod
    def class_name(cls) -> str:
        return "llava_multi_modal"

    @property
    def metadata(self) -> MultiModalMetadata:
        return MultiModalMetadata(**self._metadata(self._context_window()))

    # Undecorated: MultiModalLLM decorates what its subclasses define, and twice would be
    # two events for each call.

    def complete(  # type: ignore[override]
        self, prompt: str, image_documents: Any = None, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt about images.

        Args:
            prompt: the text.
            image_documents: the images.
            formatted: whether ``completion_to_prompt`` was applied already.
            **kwargs: as in :meth:`LLaVA.chat`.
        """
        messages = self._picture_messages(prompt, image_documents, formatted)
        return to_completion(self._chat(messages, kwargs))

    def stream_complete(  # type: ignore[override]
        self, prompt: str, image_documents: Any = None, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Stream :meth:`complete`."""
        messages = self._picture_messages(prompt, image_documents, formatted)
        return completions(self._stream(messages, kwargs))

    async def acomplete(  # type: ignore[override]
        self, prompt: str, image_documents: Any = None, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Run :meth:`complete` without blocking the event loop."""
        messages = self._picture_messages(prompt, image_documents, formatted)
        return to_completion(await self._achat(messages, kwargs))

    async def astream_complete(  # type: ignore[override]
        self, prompt: str, image_documents: Any = None, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Run :meth:`stream_complete` without blocking the event loop."""
        messages = self._picture_messages(prompt, image_documents, formatted)
        return acompletions(await self._astream(messages, kwargs))

    def _picture_messages(
        self, prompt: str, image_documents: Any, formatted: bool
    ) -> Sequence[ChatMessage]:
        (message,) = self._prompt_messages(prompt, formatted)
        pictures = [to_image_block(one) for one in flattened(image_documents)]
        text = TextBlock(text=message.content or "")
        return [ChatMessage(role=MessageRole.USER, blocks=[*pictures, text])]
