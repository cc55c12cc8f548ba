"""What can be wanted of a page, and the requests that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from llavakit._checks import Takes, check_integer, checked, refused
from llavakit.documents.pages import Page
from llavakit.documents.tiles import Tiles
from llavakit.errors import ParameterError
from llavakit.values import Image, Message, SamplingParams, Text

TaskName: TypeAlias = Literal["transcribe", "describe", "extract"]
PROMPTS: Mapping[str, str] = {
    "transcribe": "Transcribe the text in this image.",
    "describe": "Describe this image in detail.",
    "extract": "Extract the data as JSON.",
}
"""What the model is asked unless the caller says otherwise."""


@checked
@dataclass(frozen=True, slots=True)
class Task:
    """What is wanted of each page. Greedy, so the same page always gives the same answer.

    Attributes:
        name: ``"transcribe"``, ``"describe"`` or ``"extract"``.
        prompt: the words that the model is asked with; "" takes those of :data:`PROMPTS`.
        schema: for ``"extract"``: the JSON schema that the data must obey, or a class that
            has one (pydantic's).
        max_tokens: most tokens of an answer (with tiles, of each tile's transcription).
        tiles: how pages are cut: :class:`Tiles`, or its text (``"2x3"``, ``"auto"``), which
            becomes one; None shows them whole. A transcription reads tile by tile;
            the other tasks see the whole page and then its tiles, in one request.
        confidence: whether readings report how sure the model was, of data for each field (see
            :class:`~llavakit.documents.Confidence`).
    """

    name: Annotated[TaskName, Takes(str)]
    prompt: str = ""
    schema: Any = None
    max_tokens: int = 1024
    tiles: Annotated[Tiles | None, Takes(Any)] = None
    confidence: bool = False

    def __post_init__(self) -> None:
        if self.name not in PROMPTS:
            raise ParameterError(
                f"There is no task {self.name!r}; use one of {', '.join(PROMPTS)}."
            )
        if (self.name == "extract") != (self.schema is not None):
            raise ParameterError("A schema belongs to the task extract, and it needs one.")
        if self.schema is not None:
            object.__setattr__(self, "schema", _schema(self.schema))
        if self.prompt and not self.prompt.strip():
            raise refused("prompt", self.prompt, "words, or an empty string for the usual ones")
        check_integer("max_tokens", self.max_tokens, least=1)
        if isinstance(self.tiles, str):
            object.__setattr__(self, "tiles", Tiles.parse(self.tiles))
        elif not (self.tiles is None or isinstance(self.tiles, Tiles)):
            raise refused("tiles", self.tiles, 'Tiles(columns, rows), "2x3", "auto" or None')
        object.__setattr__(self, "prompt", self.prompt or PROMPTS[self.name])

    @property
    def params(self) -> SamplingParams:
        """How answers are drawn."""
        return SamplingParams(
            self.max_tokens,
            temperature=0,
            json_schema=self.schema,
            logprobs=0 if self.confidence else None,
        )

    @checked
    def questions(self, page: Page) -> list[Message]:
        """The requests that one page needs."""
        if self.tiles is None:
            return [self._question([page.picture])]
        tiles = self.tiles.cut(page.picture)
        if self.name == "transcribe":
            return [self._question([tile]) for tile in tiles]
        return [self._question([page.picture, *tiles] if len(tiles) > 1 else tiles)]

    def _question(self, pictures: list[Any]) -> Message:
        return Message("user", [*map(Image, pictures), Text(self.prompt)])


def _schema(schema: Any) -> Mapping[str, Any]:
    of_class = getattr(schema, "model_json_schema", None)
    found = of_class() if callable(of_class) else schema
    if not isinstance(found, Mapping):
        raise ParameterError(
            f"A schema is a JSON schema (a mapping) or a pydantic class, and no "
            f"{type(schema).__name__}."
        )
    return found
