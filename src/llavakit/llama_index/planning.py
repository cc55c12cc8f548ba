"""Planning of prompts with the real number of tokens of images.

LlamaIndex plans 2125 tokens for every image, whatever the model, so that with a window of
4,096 tokens each image gets a call of its own. A demo image has 64 tokens and an image
of LLaVA-1.5 has 576. This prompt helper asks the model. It only plans: the engine counts
every prompt itself and refuses what does not fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, ChatPromptHelper
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import BaseTool

from llavakit.images import Picture
from llavakit.llama_index.content_blocks import picture_of
from llavakit.llama_index.metadata import ModelMetadata
from llavakit.sources import read_source
from llavakit.values import Image, Message


class MeasuredImage(ImageBlock):
    """An image block that holds its bytes and knows its tokens."""

    tokens: int

    async def aestimate_tokens(self, *args: Any, **kwargs: Any) -> int:
        return self.tokens


class PicturePromptHelper(ChatPromptHelper):
    """The framework's chat prompt helper, with the real tokens of each image.

    Images that are files or addresses are read here, under the model's policy: the
    framework would read them itself a moment later, without one.

    Args:
        llm: the model whose window and image tokens count.
        **settings: further arguments of ``ChatPromptHelper``.
    """

    _llm: Any = PrivateAttr()

    def __init__(self, llm: ModelMetadata, **settings: Any) -> None:
        metadata = llm.metadata
        settings.setdefault("context_window", metadata.context_window)
        settings.setdefault("num_output", metadata.num_output)
        super().__init__(**settings)
        self._llm = llm

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_picture_prompt_helper"

    async def arepack(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> list[ChatMessage]:
        measured = await asyncio.to_thread(self._measured, messages)
        return await super().arepack(prompt, measured, padding, llm, tools)

    async def atruncate(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> Sequence[ChatMessage]:
        measured = await asyncio.to_thread(self._measured, messages)
        return await super().atruncate(prompt, measured, padding, llm, tools)

    def _measured(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        return [
            message.model_copy(
                update={"blocks": [self._measured_block(block) for block in message.blocks]}
            )
            for message in messages
        ]

    def _measured_block(self, block: Any) -> Any:
        if not isinstance(block, ImageBlock) or isinstance(block, MeasuredImage):
            return block
        image = picture_of(block)
        data = image.source
        if isinstance(data, Picture):  # from an array or the like: no bytes to keep
            return block
        if not isinstance(data, bytes):
            data = read_source(data, self._llm.policy, from_url_field=image.from_url_field)
        return MeasuredImage(
            image=data, image_mimetype=block.image_mimetype, tokens=self._tokens(Image(data))
        )

    def _tokens(self, image: Image) -> int:
        backend = self._llm.backend_for()
        with_it: int = backend.count_tokens(Message("user", [image]))
        without: int = backend.count_tokens(Message("user", []))
        return with_it - without
