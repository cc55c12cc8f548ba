"""``ImageQuestionTool``: an agent's tool that answers questions about images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.tools import FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.workflow import Context

from llavakit._checks import checked
from llavakit.errors import InputError, ParameterError
from llavakit.llama_index.content_blocks import document_of, picture_of
from llavakit.questions import (
    REPORTED,
    ImageAnswer,
    ImageAsker,
    ImageQuestion,
    Pictures,
    Shown,
    numbered,
)
from llavakit.questions.asking import NAME
from llavakit.values import Image

_CALLS = ("_real_fn", "_fn", "_async_fn")
_USERS = (MessageRole.USER, MessageRole.SYSTEM, MessageRole.DEVELOPER)


class ImageQuestionTool(FunctionTool):
    """Answer questions about images, for an agent with any model that calls tools.

    >>> from llavakit.llama_index import ImageQuestionTool
    >>> tool = ImageQuestionTool(model="demo", attachments={"plan": "plan.png"})
    >>> tool(question="What is the title?", image="plan").content  # doctest: +SKIP
    '"FLOOR PLAN"'

    The agent's model names an image: ``image_1``, ``image_2``, ... of the running conversation (the
    memory of the ``FunctionAgent``, ``ReActAgent`` or ``AgentWorkflow`` that calls), an
    attachment, a file below ``roots``, or with ``allow_urls`` an address. It never sends one.
    What may not or cannot be opened comes back as an output with ``is_error``, and the run goes on.

    The answer is text in quotes, marked as data (:attr:`~llavakit.questions.ImageAnswer.marked`);
    ``raw_output`` is a dict of JSON types: ``text``, ``image``, ``sha256``, ``usage``, ...

    Args:
        name: what the agent's model calls it.
        description: for the agent's model; by default what may be named, and that answers are
            data.
        return_direct: end the run with the answer.
        **settings: of :class:`~llavakit.llama_index.LLaVA`: ``model``, ``max_tokens``,
            ``backend``, ...; with ``attachments``, ``roots`` and ``allow_urls``
            (see :class:`~llavakit.questions.ImageAsker`).
    """

    @checked
    def __init__(
        self,
        *,
        name: str = NAME,
        description: str | None = None,
        return_direct: bool = False,
        **settings: Any,
    ) -> None:
        self.asker = ImageAsker(**settings)
        metadata = ToolMetadata(
            name=name,
            description=description or self.asker.describe(),
            fn_schema=ImageQuestion,
            return_direct=return_direct,
        )
        super().__init__(fn=self.call, async_fn=self.acall, metadata=metadata)
        # Agents give the workflow's context to a function tool that says so.
        self.requires_context, self.ctx_param_name = True, "ctx"

    def __getstate__(self) -> dict[str, Any]:
        # The framework keeps its wrappers of our methods, which can be neither copied nor pickled.
        return {name: value for name, value in vars(self).items() if name not in _CALLS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._real_fn = self._fn = self.call
        self._async_fn = self.acall

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Answer a question; images of a conversation are only known to :meth:`acall`.

        Args:
            *args: ``question`` and ``image``, if they are not named.
            **kwargs: ``question``, in plain words, and ``image``, the image's name. ``ctx`` is
                of no use here, since a context can be read on its event loop only.
        """
        asked, _ = _asked(args, kwargs)
        try:
            _check(asked)
            answer = self.asker.ask(asked["question"], asked["image"], self.asker.pictures)
        except REPORTED as error:
            return self._refused(asked, error)
        return self._output(asked, answer)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """As :meth:`call`, never blocking the event loop; cancelling it frees the model.

        Args:
            *args: ``question`` and ``image``, if they are not named.
            **kwargs: ``question``, ``image``, and ``ctx``: the context of the agent's workflow,
                whose memory holds the conversation.
        """
        asked, context = _asked(args, kwargs)
        try:
            _check(asked)
            messages = await _conversation(context)

            def pictures() -> Pictures:
                return self.asker.pictures(numbered(shown_in(messages), self.asker.reach()))

            answer = await self.asker.aask(asked["question"], asked["image"], pictures)
        except REPORTED as error:
            return self._refused(asked, error)
        return self._output(asked, answer)

    def _output(self, asked: dict[str, Any], answer: ImageAnswer) -> ToolOutput:
        return ToolOutput(
            tool_name=self.metadata.get_name(),
            blocks=[TextBlock(text=answer.marked)],
            raw_input=asked,
            raw_output=answer.record(),
        )

    def _refused(self, asked: dict[str, Any], error: Exception) -> ToolOutput:
        return ToolOutput(
            tool_name=self.metadata.get_name(),
            content=f"Error: {error}",
            raw_input=asked,
            raw_output=str(error),
            is_error=True,
            exception=error,
        )


def shown_in(messages: Sequence[ChatMessage]) -> list[Shown]:
    """Return every image and document of the messages, in their order; nothing is opened.

    What cannot be opened is there too, as the reason why: it counts, so that the others keep
    their numbers.
    """
    return [
        thing
        for message in messages
        for block in message.blocks
        for thing in _in_block(block, message.role in _USERS)
    ]


def _in_block(block: Any, by_user: bool) -> Iterator[Shown]:
    if isinstance(block, CitableBlock):
        for one in block.content:
            yield from _in_block(one, by_user)
    elif isinstance(block, CitationBlock):
        yield from _in_block(block.cited_content, by_user)
    elif isinstance(block, (ImageBlock, DocumentBlock)):
        document = isinstance(block, DocumentBlock)
        source: Image | InputError
        try:
            if isinstance(block, ImageBlock):
                source = picture_of(block)
            else:
                source = document_of(block).source
        except InputError as error:
            source = error
        yield Shown(source, document=document, by_user=by_user)


async def _conversation(ctx: Any) -> list[ChatMessage]:
    """Return what the agent's model sees: its memory, and what tools gave back in this run."""
    if not isinstance(ctx, Context):  # a model may write a `ctx` of its own
        return []
    memory = await ctx.store.get("memory", default=None)
    messages = [] if memory is None else await memory.aget()
    return [*messages, *await ctx.store.get("scratchpad", default=[])]


def _asked(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """What a model asked, and the context that the agent added."""
    named = dict(zip(("question", "image", *range(len(args))), args, strict=False))
    asked = {str(name): value for name, value in (named | dict(kwargs)).items()}
    return asked, asked.pop("ctx", None)


def _check(asked: Mapping[str, Any]) -> None:
    if set(asked) != {"question", "image"} or not all(isinstance(v, str) for v in asked.values()):
        raise ParameterError(
            "The call takes two texts and nothing else: question, and image, which is the "
            "image's name."
        )
