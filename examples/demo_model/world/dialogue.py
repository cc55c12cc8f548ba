"""What a training example is: a system text and turns of question and answer.

``<image>`` in a question stands for a picture; pictures are counted through the dialogue.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

IMAGE = "<image>"
VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
SHORT_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers questions about pictures.",
    "Answer briefly.",
    "You are a friendly assistant.",
)


@dataclass(frozen=True)
class Dialogue:
    """Turns of (question, answer) under an optional system text; ``task`` names what it teaches."""

    task: str
    turns: tuple[tuple[str, str], ...]
    system: str | None = None

    def prompt(self) -> str:
        """Return the text up to the last answer, as the chat template writes it."""
        text = f"{self.system} " if self.system else ""
        for question, answer in self.turns[:-1]:
            text += f"USER: {question} ASSISTANT: {answer}</s>"
        return f"{text}USER: {self.turns[-1][0]} ASSISTANT:"

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1][1]


def random_system(rng: random.Random) -> str | None:
    """Return no system text (mostly), LLaVA's, or another short one."""
    kind = rng.random()
    if kind < 0.75:
        return None
    return VICUNA_SYSTEM if kind < 0.9 else rng.choice(SHORT_SYSTEMS)
