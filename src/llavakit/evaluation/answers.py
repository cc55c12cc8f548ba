"""Rules that turn a model's text into the answer that is scored, one for each benchmark.

They are those of LLaVA's evaluation scripts, with their quirks: a published score is only
reproduced by the rules that it was made with.
"""

from __future__ import annotations

import re
from typing import Literal

from llavakit.errors import InputError

# The table of the VQA challenge (Antol et al. 2015) holds for each word its spellings with exactly
# one apostrophe left out; REPAIRED is that table, made from the words.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
"""


def _spellings(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, sign in enumerate(word) if sign == "'"]


REPAIRED: dict[str, str] = {
    wrong: word for word in [*_CONTRACTED.split(), "she'd've"] for wrong in _spellings(word)
}
# The challenge's own table has this one the other way round, and scores depend on it.
REPAIRED["somebody'd"] = "somebodyd"

YesNo = Literal["yes", "no"]

LETTERS = ("A", "B", "C", "D", "E")

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_->' + "<@`,?!"
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the challenge's code passes a flag as a count, and scores depend on it
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def vqa_answer(text: str) -> str:
    """Normalise an answer as the VQA challenge does: lower case, no articles, numbers as digits.

    Punctuation that touches a space goes, other punctuation becomes a space; a point goes unless a
    digit follows. Source: the answer processor of EvalAI, in LLaVA's ``m4c_evaluator.py``.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(text).split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    cleaned = text
    for sign in _PUNCTUATION:
        beside_a_space = f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if beside_a_space else " ")
    return _FULL_STOP.sub("", cleaned, count=_MOST_FULL_STOPS)


def gqa_answer(text: str) -> str:
    """Normalise an answer as GQA's predictions hold it."""
    return text.rstrip(".").lower()


def pope_answer(text: str) -> YesNo:
    """Read an answer as POPE does: ``No``, ``no`` or ``not`` in its first sentence is a no.

    Everything else is a yes, ``NO`` and ``nope`` included, as POPE counts.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_answer(text: str) -> YesNo | None:
    """Read an answer as MME does: the word, or what its first four letters hold; or neither."""
    text = text.strip().lower()
    if text in ("yes", "no"):
        return "yes" if text == "yes" else "no"
    beginning = text[:4]
    if "yes" in beginning:
        return "yes"
    return "no" if "no" in beginning else None


def science_answer(text: str, choices: int) -> int | None:
    """Return the choice that an answer to ScienceQA names, from 0; None if it names none.

    It may be a letter alone, a beginning like ``B. ``, or ``The answer is B.`` if that occurs once.
    """
    if text in LETTERS:
        letter = text
    elif len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    else:
        found = _THE_ANSWER_IS.findall(text)
        letter = found[0] if len(found) == 1 else ""
    allowed = LETTERS[:choices]
    return allowed.index(letter) if letter in allowed else None


def textvqa_question(prompt: str) -> str:
    """Return the question in a prompt of TextVQA, in lower case, as annotations are keyed.

    Raises:
        InputError: the prompt has none of the forms that LLaVA's question files use.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if match:
            return match[1].lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[prompt.startswith("Reference OCR token:")].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise InputError(
        "It has none of the forms of TextVQA's prompts, such as a question, a line 'Reference OCR "
        "token: ...' and a line that asks for a short answer."
    )


def review_scores(review: str) -> tuple[float, float] | None:
    """Parse the two scores in the first line of a judge's review, ``8 9`` or ``8,9``."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, parts)
    except ValueError:
        return None
    return first, second
