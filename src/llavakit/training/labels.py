"""Which tokens of a conversation are learnt: the assistant's words and what ends them.

All else is masked with -100. The masks are those of the original LLaVA
(``preprocess_v1``, ``preprocess_llama_2``, ``preprocess_plain`` and ``preprocess`` in
``llava/train/train.py`` at c121f04). The original counted tokens of pieces that it had cut by
their separators, and masked a whole sample where the counts did not add up. Here an answer
begins where the prompt that asks for it ends, so that nothing can fail to add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavakit.errors import CheckpointError, MessageError, ParameterError
from llavakit.model.tokens import PromptTokenizer
from llavakit.prompts.conversation import Turn
from llavakit.prompts.styles import Labelled, Plain
from llavakit.values import Image

IGNORED = -100
"""The label of tokens that are read and not learnt (torch's default)."""


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """A conversation to learn.

    Attributes:
        ids: tokens; each image is one image token.
        labels: as many; a token where it is learnt, else ``IGNORED``.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return sum(label != IGNORED for label in self.labels)


def label(prompts: PromptTokenizer, turns: Sequence[Turn]) -> LabelledTokens:
    """The tokens of a conversation and their labels.

    Args:
        prompts: the checkpoint's tokenizer and template.
        turns: perhaps the system's, then user and assistant by turns. What the assistant says
            before any user is left out, as in the original; only its first templates
            (``v0``) have a place for it.

    Raises:
        MessageError: nothing in it can be learnt.
        ParameterError: a template that no model can be trained with.
        CheckpointError: a chat template that does not show where answers begin and end.
    """
    template = prompts.template
    if template is not None and template.tagged:
        raise ParameterError(
            "Templates with <Image> tags are for answering only; train with conv_mode=v1."
        )
    if isinstance(template, Plain):
        found = _caption(prompts, turns)
    elif isinstance(template, Labelled) and template.assistant_end == "###":
        found = _signalled(prompts, template.system, turns)
    else:
        found = _answers(prompts, turns)
    pictures = sum(isinstance(part, Image) for turn in turns for part in turn.parts)
    if found.ids.count(prompts.image_id) != pictures:
        raise MessageError(
            f"The template keeps {found.ids.count(prompts.image_id)} of {pictures} images; put "
            "images into the user's turns."
        )
    if not found.learnt:
        raise MessageError("The assistant says nothing in it, so that nothing can be learnt.")
    return found


def _answers(prompts: PromptTokenizer, turns: Sequence[Turn]) -> LabelledTokens:
    """Each answer from where its prompt ends to behind its end mark."""
    system = [turn for turn in turns if turn.role == "system"]
    spoken = [turn for turn in turns if turn.role != "system"]
    while spoken and spoken[0].role == "assistant":
        del spoken[0]
    text = prompts.render_trained([*system, *spoken], answered=True)
    ids = prompts.tokenize(text)
    labels = [IGNORED] * len(ids)
    for number, turn in enumerate(spoken):
        if turn.role != "assistant":
            continue
        asked = prompts.render_trained([*system, *spoken[:number]], answered=False)
        answered = prompts.render_trained([*system, *spoken[: number + 1]], answered=True)
        if not (answered.startswith(asked) and text.startswith(answered)):
            raise CheckpointError(
                "The chat template of this model writes a question differently once it is "
                "answered, so that the beginnings of answers are unknown; name one of llavakit's "
                "templates with conv_mode=."
            )
        first = _shared(prompts.tokenize(asked), ids)
        if prompts.template is None:
            last = _behind_end(prompts, ids, first, _shared(prompts.tokenize(answered), ids))
        else:
            # What stands between turns (Qwen's line end) is not part of an answer.
            end = prompts.template.stops[0]
            last = _shared(prompts.tokenize(answered[: answered.rindex(end) + len(end)]), ids)
        labels[first:last] = ids[first:last]
    return LabelledTokens(tuple(ids), tuple(labels))


def _shared(prefix: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with; one that reaches over the end is not among them."""
    pairs = enumerate(zip(prefix, ids, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(prefix), len(ids)))


def _behind_end(prompts: PromptTokenizer, ids: Sequence[int], first: int, last: int) -> int:
    """Behind the first end mark: what a chat template writes between turns is not learnt."""
    hf = prompts.tokenizer
    special = set(hf.all_special_tokens)
    ends = {hf.convert_tokens_to_ids(one) for one in prompts.stop_strings if one in special}
    ends.add(hf.eos_token_id)
    found = next((at for at in range(first, last) if ids[at] in ends), None)
    if found is None:
        raise CheckpointError(
            "The chat template of this model writes no end mark behind answers, so that a model "
            "could not learn to end one; name one of llavakit's templates with conv_mode=."
        )
    return found + 1


def _caption(prompts: PromptTokenizer, turns: Sequence[Turn]) -> LabelledTokens:
    """An image and its caption, without roles: what a projector is aligned with."""
    pictures = [part for part in turns[0].parts if isinstance(part, Image)] if turns else []
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] or len(pictures) != 1:
        raise MessageError(
            "The template plain takes one question with one image, and its caption; train "
            "conversations with another conv_mode."
        )
    ends = prompts.template.stops[0] if prompts.template is not None else ""
    asked = prompts.tokenize(prompts.image_token)
    ids = prompts.tokenize(prompts.image_token + prompts.as_plain_text(turns[1].text) + ends)
    first = _shared(asked, ids)
    return LabelledTokens(tuple(ids), (*[IGNORED] * first, *ids[first:]))


def _signalled(prompts: PromptTokenizer, system: str, turns: Sequence[Turn]) -> LabelledTokens:
    """``### Human: ...``: the original's first templates, with their inexact masks.

    The original cut the conversation into its turns and tokenised each alone, BOS and all. Its
    masks therefore lie a few tokens behind the turns, and it learnt the signals, too. Models of
    these templates were trained that way.
    """
    given = [turn.text for turn in turns if turn.role == "system"]
    spoken = [turn for turn in turns if turn.role != "system"]
    pieces = [f"{given[0] if given else system}\n\n"]
    for turn in spoken:
        who = "Human" if turn.role == "user" else "Assistant"
        pieces.append(f"### {who}: {prompts.said(turn)}\n")
    ids = prompts.tokenize("".join(pieces) + "### ")
    labels = list(ids)
    lengths = [len(prompts.tokenize(piece)) for piece in pieces]
    at = lengths[0]
    labels[:at] = [IGNORED] * len(labels[:at])
    for turn, length in zip(spoken, lengths[1:], strict=True):
        if turn.role == "user":
            masked = slice(at + 2, at + length)
            labels[masked] = [IGNORED] * len(labels[masked])
        at += length
    return LabelledTokens(tuple(ids), tuple(labels))
