"""The demo model's tokenizer: byte-fallback BPE made for prompts that are copied from.

A name must be cut into the same pieces in ``Use lomi_ra with 4711.`` and in ``{"name":"lomi_ra"``,
or copying it means translating it. So a space is a piece of its own, except before the common
words of :func:`common_words`, which are never copied; digits stand alone; runs of JSON punctuation
may be one piece.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from llavakit.prompts.tools import CALL_END, CALL_START, RESULT_END, RESULT_START

from .model import MAX_POSITIONS, VOCAB_SIZE
from .pictures import picture
from .world import words
from .world.copying import random_copying
from .world.dialogue import SHORT_SYSTEMS, VICUNA_SYSTEM
from .world.pages import NAMES, TITLES
from .world.questions import ask
from .world.scenes import COLOURS, SHAPES
from .world.smalltalk import random_talk

SPACE = "▁"
UNKNOWN, START, END, IMAGE, PAD = "<unk>", "<s>", "</s>", "<image>", "<pad>"
MARKS = (CALL_START, CALL_END, RESULT_START, RESULT_END)
EXTRA_WORDS = (
    "first second third fourth image images picture pictures page pages both all one two "
    "three four which show shows USER ASSISTANT and in of to or not but with for from by at "
    "on as it its this that these those about between same different has have does do did can "
    "could will would should please other another each every any some more most very also "
    "than then when while where"
)


def sample_text(seed: int = 3, count: int = 2500) -> tuple[list[str], list[str]]:
    """Return texts about pictures and small talk, and texts of the copying tasks."""
    rng = random.Random(seed)
    plain: list[str] = [VICUNA_SYSTEM, *SHORT_SYSTEMS]
    for index in range(count):
        asked = ask(picture("scene" if index % 3 else "page", index), rng)
        plain += [f"USER: {asked.question} ASSISTANT:", f" {asked.answer}"]
        talk = random_talk(rng)
        plain += [talk.prompt(), f" {talk.answer}"]
    copying = []
    for _ in range(count):
        dialogue = random_copying(rng)
        copying += [dialogue.prompt(), f" {dialogue.answer}"]
    return plain, copying


def common_words(plain: list[str], copying: list[str]) -> list[str]:
    """Return the words that get a piece together with their space: no values to copy."""
    values = set(words.NOUNS + words.ADJECTIVES + words.FIRST_NAMES + words.LAST_NAMES)
    values |= {part for city in words.CITIES for part in re.findall(r"[A-Za-z]+", city)}
    values -= {*COLOURS, *SHAPES, "page", "number", "word", "price", "name"}
    values |= {*TITLES, *NAMES}
    of_pictures = Counter(re.findall(r" ([A-Za-z]+)", "\n".join(plain)))
    of_prompts = Counter(re.findall(r" ([A-Za-z]+)", "\n".join(copying)))
    chosen = {word for word, count in of_pictures.items() if count >= 6}
    chosen |= {word for word, count in of_prompts.items() if count >= 40}
    chosen |= set(EXTRA_WORDS.split())
    return sorted(chosen - values)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same code gives the same tokenizer."""
    plain, copying = sample_text()
    known = "|".join(common_words(plain, copying))
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    pattern = (
        rf"{SPACE}(?:{known})(?![A-Za-z0-9_])|{SPACE}|[A-Za-z]+|\d|\n|_"
        r"|[!-/:-@\[-^`{-~]+|[^\x00-\x7F▁]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    ascii_ = [chr(code) for code in range(33, 127)] + ["\n", SPACE]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 40 - len(MARKS),
        special_tokens=[UNKNOWN, START, END, *bytes_],
        initial_alphabet=ascii_,
        limit_alphabet=len(ascii_),
        show_progress=False,
    )
    # Common words are seen often enough to become one piece each, whatever else is in the text.
    lessons = [f" {word}" for word in known.split("|")] * 60
    # So are these without a space, as they stand in JSON.
    titles = [f"{word}\n" for word in (*TITLES, *NAMES, *COLOURS, *SHAPES)] * 40
    lists = [" ".join(words.NOUNS + words.ADJECTIVES + words.FIRST_NAMES)] * 12
    tokenizer.train_from_iterator(
        [*(strip_marks(text) for text in [*plain, *copying]), *lessons, *titles, *lists], trainer
    )
    rebuilt = plain_bytes(tokenizer)
    rebuilt.add_special_tokens([AddedToken(t, normalized=False) for t in (UNKNOWN, START, END)])
    rebuilt.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    rebuilt.add_special_tokens([AddedToken(t, normalized=False) for t in (IMAGE, PAD)])
    rebuilt.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )


def strip_marks(text: str) -> str:
    """Return the text without the marks that are tokens of their own."""
    for mark in (*MARKS, END):
        text = text.replace(mark, "\n")
    return text


def plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy in which the byte pieces are ordinary pieces, not special tokens."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(data))


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write it to ``folder``."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer
