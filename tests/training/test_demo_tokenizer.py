import random

import pytest

from examples.demo_model.tokenizer import build_tokenizer
from examples.demo_model.world.copying import random_copying
from examples.demo_model.world.words import chinese, code, made_up_identifier, made_up_word

pytestmark = pytest.mark.slow  # of the example that makes the bundled model


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def pieces(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_any_text_survives(tokenizer):
    rng = random.Random(1)
    texts = [random_copying(rng).prompt() for _ in range(20)] + [
        "你好啊集团 ¿qué?\n\t🙂",
        "  two  spaces ",
    ]
    for text in texts:
        assert tokenizer.decode(pieces(tokenizer, text)) == text


def test_a_value_is_cut_alike_in_prose_and_in_json(tokenizer):
    rng = random.Random(2)
    for _ in range(100):
        value = rng.choice((made_up_word, made_up_identifier, code, chinese))(rng)
        inner = pieces(tokenizer, f'"{value}"')[1:-1]
        prose = pieces(tokenizer, f"x {value} x")
        assert " ".join(map(str, inner)) in " ".join(map(str, prose))


def test_digits_stand_alone(tokenizer):
    assert len(pieces(tokenizer, "4711")) == 4


def test_common_words_are_one_piece_with_their_space(tokenizer):
    assert len(pieces(tokenizer, " What colour is the circle?")) == 6


def test_special_tokens_are_where_llava_expects_them(tokenizer):
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.convert_ids_to_tokens(pieces(tokenizer, "<image>\n"))[0] == "<image>"
    assert len(pieces(tokenizer, "<tool_call></tool_call>")) == 2


def test_the_same_code_makes_the_same_tokenizer(tokenizer):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
