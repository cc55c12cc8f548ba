"""From turns to token ids: a template and the tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from llavakit.errors import CheckpointError, MessageError
from llavakit.prompts.conversation import Turn
from llavakit.prompts.styles import Template, in_lines
from llavakit.values import Image, Part, Text, Video, check_characters

BREAK = "\uf8ff"
"""A private-use character that cuts special tokens which a user typed as plain text."""

_NO_VIDEO = "\uf8fd"

_END = "\uf8fe"
"""A private-use character that marks where an answer that was begun goes on."""


@dataclass(frozen=True, slots=True)
class Special:
    """Ids that have a meaning of their own.

    Attributes:
        image: stands for an image's tokens.
        stops: ids that end an answer.
        forbidden: ids that must never be sampled: the image's, padding, and rows that no
            token of the tokenizer belongs to (they were never trained).
    """

    image: int
    stops: frozenset[int]
    forbidden: tuple[int, ...]


class PromptTokenizer:
    """Renders turns with a template and turns them into ids.

    Args:
        tokenizer: the HF tokenizer.
        image_id: the id of the image token, from the model's configuration.
        template: stands in for the tokenizer's own chat template.
        stop_strings: strings that end every answer, for a chat template, which names none.
        image_text: what a template writes for an image; None takes the image token.
        video_id: the id of the video token, where the model takes videos.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_id: int,
        template: Template | None = None,
        *,
        stop_strings: tuple[str, ...] = (),
        image_text: str | None = None,
        video_id: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_id = image_id
        self.video_id = video_id
        self.template = template
        self._stop_strings = stop_strings if template is None else template.stops
        image_token = tokenizer.convert_ids_to_tokens(image_id)
        if image_token is None:
            raise CheckpointError(
                f"The tokenizer has no token {image_id}, which the configuration calls the image "
                "token; its files do not belong to this model."
            )
        if template is None and not tokenizer.chat_template:
            raise CheckpointError(
                "The checkpoint has no chat template; name one of llavakit's with conv_mode=."
            )
        self.image_token: str = image_token
        # A private character where there is none: no text has it.
        self.video_token: str = _NO_VIDEO
        if video_id is not None:
            self.video_token = tokenizer.convert_ids_to_tokens(video_id) or _NO_VIDEO
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._image_text = image_text or image_token
        self._special_texts = sorted(
            {str(token) for token in tokenizer.all_special_tokens}
            | added
            | {self.image_token, self.video_token},
            key=len,
            reverse=True,
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end every answer, besides the ids that do."""
        return self._stop_strings

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of the prompt; each image is one ``image_id``, and each video one ``video_id``."""
        ids = self.tokenize(self.render(turns))
        for kind, mark, what in (
            (Image, self.image_id, "images"),
            (Video, self.video_id, "videos"),
        ):
            given = sum(isinstance(part, kind) for turn in turns for part in turn.parts)
            kept = 0 if mark is None else ids.count(mark)
            if kept != given:
                raise MessageError(
                    f"The chat template of this model keeps {kept} of {given} {what}; put {what} "
                    "into user messages."
                )
        return ids

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt."""
        check_characters(text)  # those of names, arguments and descriptions of tools
        ids: list[int] = []
        for index, chunk in enumerate(text.split(BREAK)):
            # Its remark about long texts is not for users: they get a ContextLengthError.
            ids += self.tokenizer.encode(chunk, add_special_tokens=index == 0, verbose=False)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]  # the template wrote one, and the tokenizer another
        return ids

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of the prompt; special tokens typed by a user are cut by ``BREAK``."""
        if self.template is not None:
            plain = [replace(turn, parts=self._plain(turn.parts)) for turn in turns]
            return self.template.render(plain, self._image_text, video=self.video_token)
        return self._to_answer(turns)

    def render_trained(self, turns: Sequence[Turn], *, answered: bool) -> str:
        """The text of a conversation as models are trained on it.

        It differs from :meth:`render` in what follows an image without words, and in that
        nothing need follow the assistant's last words.

        Args:
            turns: the conversation.
            answered: whether it ends with the assistant's words; if not, with what stands
                before them.
        """
        if self.template is None:
            return self._chat_template(self._conversation(turns), answered=answered)
        plain = [replace(turn, parts=self._plain(turn.parts)) for turn in turns]
        if answered:
            return self.template.render_answered(plain, self._image_text, video=self.video_token)
        return self.template.render(plain, self._image_text, video=self.video_token, alone="")

    def _to_answer(self, turns: Sequence[Turn]) -> str:
        """A conversation by the checkpoint's chat template, up to where the answer begins.

        Chat templates are made for a user who speaks last, and some for turns that alternate
        and nothing else. Where one refuses a conversation, or begins no turn of the assistant
        behind it, an empty turn of the user stands where one is missing.

        Raises:
            MessageError: the template refuses it all the same.
        """
        if turns[-1].open:
            return self._begun(turns)
        try:
            written = self._rendered(turns)
        except TemplateError:
            return self._rendered(_alternating(turns), last=True)
        if turns[-1].role == "user" or written.rstrip().endswith(self._opening):
            return written
        return self._rendered(_alternating(turns), last=True)

    @cached_property
    def _opening(self) -> str:
        """The word with which the chat template ends a prompt, before an answer."""
        try:
            written = self._rendered([Turn("user", (Text(_END),))])
        except TemplateError:
            return ""
        words = written.rpartition(_END)[2].split()
        return words[-1] if words else ""

    def _begun(self, turns: Sequence[Turn]) -> str:
        """A conversation that ends with words of the assistant, and nothing behind those."""
        *before, last = turns
        said = list(last.parts)
        words = ""
        if said and isinstance(ending := said[-1], Text):
            words = ending.text
            del said[-1]
        marked = [*before, replace(last, parts=(*said, Text(words + _END)))]
        try:
            written = self._rendered(marked, answered=True)
        except TemplateError:
            written = self._rendered(_alternating(marked), answered=True, last=True)
        begun, mark, _ = written.rpartition(_END)
        if not mark:
            raise MessageError(
                "The chat template of this model keeps no words of the assistant that the answer "
                "could go on with; leave continue_final_message out."
            )
        return begun

    def _rendered(
        self, turns: Sequence[Turn], *, answered: bool = False, last: bool = False
    ) -> str:
        try:
            return self._chat_template(self._conversation(turns), answered=answered)
        except TemplateError as error:
            if not last:
                raise
            raise MessageError(
                f"The chat template of this model refuses the conversation ({error}); give it "
                "another form, or name one of llavakit's templates with conv_mode=."
            ) from error

    def _conversation(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        return [{"role": turn.role, "content": self._blocks(turn.parts)} for turn in turns]

    def _chat_template(self, conversation: list[dict[str, Any]], *, answered: bool = False) -> str:
        rendered = self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=not answered
        )
        assert isinstance(rendered, str)
        return rendered

    @cached_property
    def _keeps_order(self) -> bool:
        """Whether the chat template leaves images between the words where they are."""
        return self._places({"type": "image"}, self.image_token)

    @cached_property
    def _writes_videos(self) -> bool:
        """Whether the chat template knows videos at all."""
        return self._written({"type": "video"}).count(self.video_token) == 1

    @cached_property
    def _keeps_videos_in_order(self) -> bool:
        return self._places({"type": "video"}, self.video_token)

    def _places(self, block: dict[str, str], mark: str) -> bool:
        before, found, behind = self._written(block).partition(mark)
        return bool(found) and "before" in before and "behind" in behind

    def _written(self, block: dict[str, str]) -> str:
        """What the chat template makes of a block between two texts; empty if it fails."""
        texts = [{"type": "text", "text": text} for text in ("before", "behind")]
        try:
            return self._chat_template([{"role": "user", "content": [texts[0], block, texts[1]]}])
        except Exception:  # a chat template is a program, and fails as it likes
            return ""

    def _blocks(self, parts: Sequence[Part]) -> list[dict[str, str]]:
        """A turn as a chat template reads it.

        Many templates write all images first, and end the turn behind every text. They get
        the images and videos that come first as such, and then one text in which the others
        stand; so do those that know no videos, with the videos in the text.
        """
        videos = any(isinstance(part, Video) for part in parts)
        if self._keeps_order and parts and (self._keeps_videos_in_order or not videos):
            return [self._block(part) for part in parts]
        plain = self._plain(parts)
        as_blocks = (Image, Video) if self._writes_videos or not videos else Image
        leading = list(takewhile(lambda part: isinstance(part, as_blocks), plain))
        text = in_lines(plain[len(leading) :], self.image_token, video=self.video_token)
        return [*(self._block(part) for part in leading), {"type": "text", "text": text}]

    def _block(self, part: Part) -> dict[str, str]:
        if isinstance(part, Text):
            return {"type": "text", "text": self.as_plain_text(part.text)}
        return {"type": "video" if isinstance(part, Video) else "image"}

    def _plain(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(
            Text(self.as_plain_text(part.text)) if isinstance(part, Text) else part
            for part in parts
        )

    def said(self, turn: Turn) -> str:
        """What one turn says, without any template, its images written as they are trained."""
        return in_lines(self._plain(turn.parts), self._image_text, alone="", video=self.video_token)

    def as_plain_text(self, text: str) -> str:
        """The text with ``BREAK`` inside everything that would be read as a special token."""
        text = text.replace(BREAK, "")
        for special in self._special_texts:
            if special in text and len(special) > 1:
                text = text.replace(special, special[0] + BREAK + special[1:])
        return text


def _alternating(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with an empty one of the user wherever one is missing, also at the end."""
    result: list[Turn] = []
    for turn in turns:
        asked = bool(result) and result[-1].role == "user"
        if turn.role == "assistant" and not asked:
            result.append(Turn("user", ()))
        result.append(turn)
    last = result[-1]
    return result if last.role == "user" or last.open else [*result, Turn("user", ())]


def special_tokens(
    tokenizer: Any, config: Any, generation: Any, stop_strings: Sequence[str] = ()
) -> Special:
    """The special ids of a checkpoint, put together from all files that name some.

    Args:
        tokenizer: an HF tokenizer.
        config: the HF configuration.
        generation: the HF generation configuration, or None.
        stop_strings: of the template. Those that are special tokens end an answer by their
            ids, because the text of an answer is decoded without special tokens.
    """
    text_config = config.text_config
    stops: set[int] = set()
    for owner in (generation, text_config, tokenizer):
        named = getattr(owner, "eos_token_id", None)
        stops.update(named if isinstance(named, list) else [] if named is None else [named])
    specials = set(tokenizer.all_special_tokens)
    stops.update(tokenizer.convert_tokens_to_ids(text) for text in specials & {*stop_strings})
    image = int(config.image_token_id)
    padding = tokenizer.pad_token_id
    forbidden = {image, *range(len(tokenizer), int(text_config.vocab_size))}
    video = getattr(config, "video_token_id", None)
    if video is not None:
        forbidden.add(int(video))
    if padding is not None and padding not in stops:
        forbidden.add(padding)
    return Special(image, frozenset(stops), tuple(sorted(forbidden)))
