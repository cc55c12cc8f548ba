"""Contractions without their apostrophe, as VQA's answer processor repairs them.

The table of the VQA challenge (Antol et al. 2015) holds for each word its spellings with exactly
one apostrophe left out; ``REPAIRED`` is that table, made from the words.
"""

from __future__ import annotations

_WORDS = """
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
    wrong: word for word in [*_WORDS.split(), "she'd've"] for wrong in _spellings(word)
}
# The challenge's own table has this one the other way round, and scores depend on it.
REPAIRED["somebody'd"] = "somebodyd"
