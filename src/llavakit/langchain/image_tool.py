"""``ImageQuestionTool``: an agent's tool that answers questions about images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from langchain_core.messages import BaseMessage
from langchain_core.tools import ArgsSchema, BaseTool, InjectedToolArg, ToolException
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from llavakit.langchain.conversation_images import images_of
from llavakit.questions import (
    REPORTED,
    ImageAnswer,
    ImageAsker,
    ImageQuestion,
    Pictures,
    numbered,
)
from llavakit.questions.asking import NAME


class _ImageArguments(ImageQuestion):
    __doc__ = ImageQuestion.__doc__

    # LangGraph gives its runtime to a field of this name, and takes a value from the model away.
    # Excluded, because LangChain dumps the arguments, and the whole state is in there.
    runtime: Annotated[Any, InjectedToolArg] = Field(default=None, exclude=True)


class ImageQuestionTool(ImageAsker, BaseTool):
    """Answer questions about images, for an agent with any model that calls tools.

    >>> from llavakit.langchain import ImageQuestionTool
    >>> tool = ImageQuestionTool(model="demo", attachments={"plan": "plan.png"})
    >>> tool.invoke({"question": "What is the title?", "image": "plan"})  # doctest: +SKIP
    '"FLOOR PLAN"'

    Takes the settings of :class:`~llavakit.langchain.ChatLLaVA`, and shares its model. The agent's
    model names an image: ``image_1``, ``image_2``, ... of the running conversation (which
    ``create_agent`` and LangGraph's ``ToolNode`` hand over by themselves), an attachment, a file
    below ``roots``, or with ``allow_urls`` an address. It never sends one. What may not or cannot
    be opened comes back as a tool message of status ``"error"``, and the run goes on.

    The answer is text in quotes, marked as data (:attr:`~llavakit.questions.ImageAnswer.marked`);
    the artifact is a dict of JSON types: ``text``, ``image``, ``sha256``, ``usage``, ...
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str = NAME
    description: str = ""
    """For the agent's model; by default what may be named, and that answers are data."""
    # A class, which JSON cannot hold.
    args_schema: Annotated[ArgsSchema | None, SkipValidation()] = Field(
        _ImageArguments, exclude=True
    )
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True
    handle_validation_error: Any = (
        "The call needs two texts: question, and image, which is the image's name."
    )
    messages_key: str = "messages"
    """Where the graph's state keeps the conversation."""

    @model_validator(mode="after")
    def _described(self) -> ImageQuestionTool:
        if not self.description:
            self.description = self.describe()
        return self

    def _run(
        self, question: str, image: str, runtime: Annotated[Any, InjectedToolArg] = None
    ) -> tuple[str, dict[str, Any]]:
        try:
            return _result(self.ask(question, image, lambda: self._pictures(runtime)))
        except REPORTED as error:
            raise ToolException(str(error)) from error

    async def _arun(
        self, question: str, image: str, runtime: Annotated[Any, InjectedToolArg] = None
    ) -> tuple[str, dict[str, Any]]:
        try:
            return _result(await self.aask(question, image, lambda: self._pictures(runtime)))
        except REPORTED as error:
            raise ToolException(str(error)) from error

    def _pictures(self, runtime: Any) -> Pictures:
        return self.pictures(numbered(images_of(self._conversation(runtime)), self.reach()))

    def _conversation(self, runtime: Any) -> list[BaseMessage]:
        # Where no graph takes it away, a model may write a `runtime` of its own. That is JSON,
        # which has no attributes, and no messages in it.
        state = getattr(runtime, "state", None)
        if isinstance(state, Mapping):
            state = state.get(self.messages_key)
        elif not isinstance(state, list):
            state = getattr(state, self.messages_key, None)
        return [one for one in state or () if isinstance(one, BaseMessage)]


def _result(answer: ImageAnswer) -> tuple[str, dict[str, Any]]:
    return answer.marked, answer.record()
