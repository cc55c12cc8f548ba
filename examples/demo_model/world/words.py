"""Random names and values for the tasks in which the answer is copied from the prompt."""

from __future__ import annotations

import random
import string


def split(text: str, separator: str | None = None) -> list[str]:
    """Return the words of a block of text, or its parts between separators."""
    return [part.strip() for part in text.split(separator) if part.strip()]


FIRST_NAMES = split("""
    Anna Ben Clara David Emma Felix Grace Hugo Iris Jonas Karen Leo Maria Nina Oscar Paula Rosa
    Simon Tina Victor Alice Bob Carol Dan Eve Frank Heidi Ivan Judy Mallory Peggy Trent Walter
    Yuki Priya Omar Fatima Chen Olga Pedro
""")
LAST_NAMES = split("""
    Smith Jones Miller Weber Rossi Novak Tanaka Silva Kumar Lopez Martin Berg Fischer Moreau
    Khan Kim Larsen Costa Horvat Brown
""")
CITIES = split(
    """
    Paris|London|Berlin|San Francisco, CA|New York|Tokyo|Rome|Madrid|Boston, MA|Oslo|
    Vienna|Lisbon|Sydney|Toronto|Chicago|Cairo|Lima|Delhi|Seoul|Austin, TX|Prague|
    Dublin|Zurich|Los Angeles
""",
    "|",
)
NOUNS = split("""
    apple book cat dog door garden house key lamp letter milk mountain music night paper phone
    pizza river road school shoe song stone street sugar summer table tea ticket train tree
    water window winter bread car chair coffee computer email flower hotel table report meeting
    project price order account customer language weather message number word file page
""")
ADJECTIVES = split("""
    big small old new good bad happy quick slow warm cold bright dark long short open quiet
    loud simple early late cheap fresh green blue red black white free important local
""")
SYLLABLES = [c + v for c in "bdfgklmnprstvwz" for v in "aeiou"]
CHINESE = (
    "你好啊集团公司中国北京上海东方科技有限大学医院银行电子网络天地人山水火木金土日月星云风雨花草"
    "红黄蓝白黑高新明华国际文化世界一二三四五六七八九十客户名称张王李赵刘陈杨"
)
OTHER_SCRIPTS = "äöüßéèçñåøłžšğıàêâОПривет мирДаНетこんにちはありがとう"


def made_up_word(rng: random.Random) -> str:
    """Return a word that exists nowhere, of two to four syllables."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    if rng.random() < 0.3:
        word += rng.choice("nrsltmkx")
    return word


def made_up_identifier(rng: random.Random) -> str:
    """Return a name for a tool or a field, such as ``lomi_ra`` or ``getKovu``."""
    kind = rng.random()
    if kind < 0.4:
        return f"{made_up_word(rng)}_{rng.choice(SYLLABLES)}"
    if kind < 0.6:
        return made_up_word(rng)
    if kind < 0.8:
        return f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}"
    if kind < 0.9:
        return f"{rng.choice(('get', 'set', 'find', 'make'))}_{rng.choice(NOUNS)}"
    return rng.choice(NOUNS) + made_up_word(rng).capitalize()


def chinese(rng: random.Random) -> str:
    """Return one to six Chinese characters."""
    return "".join(rng.choice(CHINESE) for _ in range(rng.randint(1, 6)))


def other_script(rng: random.Random) -> str:
    """Return a word with accents or of another alphabet."""
    letters = [rng.choice(OTHER_SCRIPTS.replace(" ", "")) for _ in range(rng.randint(1, 3))]
    return made_up_word(rng)[: rng.randint(0, 4)] + "".join(letters)


def person(rng: random.Random) -> str:
    """Return a first name, often with a last name."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else made_up_word(rng).capitalize()
    if rng.random() < 0.5:
        return first
    last = rng.choice(LAST_NAMES) if rng.random() < 0.5 else made_up_word(rng).capitalize()
    return f"{first} {last}"


def city(rng: random.Random) -> str:
    """Return a place, known or made up."""
    return rng.choice(CITIES) if rng.random() < 0.6 else made_up_word(rng).capitalize()


def phrase(rng: random.Random) -> str:
    """Return two to five plain words."""
    words = [rng.choice(ADJECTIVES)] if rng.random() < 0.5 else []
    words += [rng.choice(NOUNS) for _ in range(rng.randint(1, 3))]
    if len(words) < 2:
        words.append(made_up_word(rng))
    return " ".join(words)


def code(rng: random.Random) -> str:
    """Return an identifier such as ``INV-4711``, ``img_3`` or ``a7f03c``."""
    kind = rng.random()
    if kind < 0.35:
        letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
        return f"{letters}-{rng.randint(1, 99999)}"
    if kind < 0.6:
        return f"{rng.choice(('img', 'page', 'file', 'doc', 'id'))}_{rng.randint(1, 999)}"
    if kind < 0.8:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(4, 8)))
    return f"{made_up_word(rng)}.{rng.choice(('png', 'jpg', 'pdf', 'txt'))}"


def email(rng: random.Random) -> str:
    """Return an address of nobody."""
    name = made_up_word(rng)
    return f"{name}@{rng.choice(('example.com', 'example.org', made_up_word(rng) + '.net'))}"


def date(rng: random.Random) -> str:
    """Return a date in ISO form."""
    return f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def integer(rng: random.Random) -> int:
    """Return a number of one to six digits, small ones more often."""
    value = rng.randint(0, 10 ** rng.choice((1, 1, 2, 2, 3, 4, 5, 6)) - 1)
    return -value if rng.random() < 0.03 else value


def decimal(rng: random.Random) -> float:
    """Return a number with one or two decimals."""
    return round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 2)))


def text_value(rng: random.Random) -> str:
    """Return any short text: words, names, codes, other scripts."""
    return rng.choice(TEXT_VALUES)(rng)


TEXT_VALUES = (
    made_up_word,
    made_up_word,
    person,
    city,
    phrase,
    phrase,
    code,
    email,
    date,
    chinese,
    chinese,
    other_script,
)
"""What a text to copy may be; twice stands for twice as often."""
