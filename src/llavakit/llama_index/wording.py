"""The wording of a question about pages: a few words of ours, or a template of the framework.

Pages are images, and stand in front of the words, as LLaVA was trained. A template's
``{context_str}`` therefore says where they are.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.prompts import BasePromptTemplate

from llavakit.errors import ParameterError

ABOVE = "(see the pages above)"
"""The value of ``{context_str}`` where pages are shown as images."""

_QUESTION = "{question}"
_KNOWN = ("context_str", "query_str")


@dataclass(frozen=True)
class Wording:
    """The words of a question.

    Args:
        question_template: the words, with ``{question}`` in them; None takes the question alone.
        text_qa_template: a template of the framework's instead, with ``{query_str}`` and
            ``{context_str}`` in it.

    Raises:
        ParameterError: both are given, or one cannot be filled in.
    """

    question_template: str | None = None
    text_qa_template: BasePromptTemplate | None = None

    def __post_init__(self) -> None:
        if self.text_qa_template is not None:
            if self.question_template is not None:
                raise ParameterError(
                    "question_template and text_qa_template are both given; give one of them."
                )
            _check_variables(self.text_qa_template)
        elif self.question_template is not None and _QUESTION not in self.question_template:
            raise ParameterError(
                f"question_template has no {_QUESTION} in it; put it where the question goes."
            )

    def worded(self, question: str, context: str = ABOVE) -> tuple[list[ChatMessage], str]:
        """Return the messages that come first, and what the user says in the end.

        Raises:
            ParameterError: the template does not end with words of the user.
        """
        if self.text_qa_template is None:
            return [], (self.question_template or _QUESTION).replace(_QUESTION, question)
        # Templates read mark-up in what is filled in; a question is only ever text.
        places = {name: f"{name}-{uuid.uuid4().hex}" for name in _KNOWN}
        messages = self.text_qa_template.format_messages(None, **places)
        texts = {places["context_str"]: context, places["query_str"]: question}
        *before, last = [_filled(message, texts) for message in messages]
        if last.role != MessageRole.USER:
            raise ParameterError(
                "text_qa_template ends with words of the "
                f"{last.role.value}; pages are shown in the user's message, which comes last."
            )
        return before, last.content or ""


def _check_variables(template: BasePromptTemplate) -> None:
    given = {*_KNOWN, *template.kwargs, *(template.function_mappings or {})}
    mapped = template.template_var_mappings or {}
    unknown = sorted(set(template.template_vars) - {mapped.get(name, name) for name in given})
    if unknown:
        raise ParameterError(
            f"text_qa_template asks for {unknown[0]!r}, and pages fill in {' and '.join(_KNOWN)}; "
            "give it the rest by partial_format."
        )


def _filled(message: ChatMessage, texts: dict[str, str]) -> ChatMessage:
    blocks = []
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise ParameterError(
                "text_qa_template shows more than text; the pages are shown in front of it."
            )
        text = block.text
        for place, value in texts.items():
            text = text.replace(place, value)
        blocks.append(TextBlock(text=text))
    return ChatMessage(role=message.role, blocks=blocks)
