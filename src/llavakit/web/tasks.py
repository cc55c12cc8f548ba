"""The ready tasks: what people ask most, as buttons."""

from __future__ import annotations

from dataclasses import dataclass

from llavakit.documents.tasks import PROMPTS

SHORTLY = "Answer the question using a single word or phrase."
"""What LLaVA was trained to read behind questions of visual question answering."""


@dataclass(frozen=True, slots=True)
class ReadyTask:
    """One button.

    Attributes:
        label: what the button says.
        prompt: what the model is asked.
        needs_question: the visitor's own words come first, and ``prompt`` behind them.
    """

    label: str
    prompt: str
    needs_question: bool = False

    def question(self, typed: str) -> str:
        """Return what is asked when ``typed`` stands in the box; "" if words are missing."""
        typed = typed.strip()
        if self.needs_question:
            return f"{typed}\n{self.prompt}" if typed else ""
        return self.prompt


TASKS = (
    ReadyTask("Caption", "Write a caption for this image."),
    ReadyTask("Short answer", SHORTLY, needs_question=True),
    ReadyTask("List objects", "List the objects in this image."),
    ReadyTask("Describe the scene", PROMPTS["describe"]),
    ReadyTask("Read the document", PROMPTS["transcribe"]),
)
"""Captioning, visual question answering, listing, describing, reading."""
