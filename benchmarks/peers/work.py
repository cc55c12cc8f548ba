"""What every contender is asked. Standard library and Pillow only: vLLM's process reads it, too."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image as PILImage

IMAGES = 7
TOGETHER = 16
TURNS = 6

TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    " ASSISTANT:"
)
"""Each turn's prompt begins with the last one and its answer, so that caches can hold both."""


@dataclass(frozen=True)
class Request:
    """The turns of one conversation about one image, and how many tokens answer the last."""

    image: int
    questions: list[str]
    max_tokens: int
    answers: list[str] = field(default_factory=list)

    def prompt(self, image: str) -> str:
        """Render the checkpoint's chat template, with ``image`` where the image belongs."""
        text = ""
        for number, question in enumerate(self.questions):
            text += f"USER: {image}\n{question}" if number == 0 else f"USER: {question}"
            if number < len(self.answers):
                text += f" ASSISTANT: {self.answers[number]}</s>"
        return f"{text} ASSISTANT:"


@dataclass(frozen=True)
class Work:
    """The requests of all workloads; each workload has images of its own."""

    warm: Request
    single: Request
    chat: Request
    together: list[Request]

    def save(self, file: Path) -> None:
        """Write the requests as JSON."""
        file.write_text(json.dumps(asdict(self)))


def load_work(file: Path) -> Work:
    """Read what :meth:`Work.save` wrote."""
    saved = json.loads(file.read_text())
    one = {name: Request(**saved[name]) for name in ("warm", "single", "chat")}
    return Work(**one, together=[Request(**request) for request in saved["together"]])


def open_image(file: Path) -> PILImage.Image:
    """Decode an image, so that no engine's clock has it."""
    with PILImage.open(file) as opened:
        return opened.convert("RGB")


def make_work(words: Sequence[str], *, scale: float = 1.0) -> Work:
    """Draw questions from ``words``, each of which is one token.

    Args:
        words: the words of the tokenizer.
        scale: of the answers' lengths; 1 is the benchmark, less is a dry run.
    """
    generator = random.Random(5)

    def question(length: int) -> str:
        return " ".join(generator.choice(words) for _ in range(length))

    def tokens(count: int) -> int:
        return max(2, int(count * scale))

    lengths = [tokens(generator.randrange(32, 65, 4)) for _ in range(TOGETHER)]
    return Work(
        warm=Request(6, [question(12)], tokens(8)),
        single=Request(5, [question(16)], tokens(64)),
        chat=Request(4, [question(20) for _ in range(TURNS)], tokens(24)),
        together=[
            Request(number % 4, [question(generator.randrange(12, 33))], lengths[number])
            for number in range(TOGETHER)
        ],
    )
