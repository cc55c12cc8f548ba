import random

import pytest
import torch

from llavakit.demo.dialogue import Dialogue
from llavakit.training.demo_data import IGNORED, Lessons, Tree
from llavakit.training.demo_losses import WordAlignment, joint_loss
from llavakit.training.demo_model import build_model, text_states
from llavakit.training.demo_pictures import draw_many
from llavakit.training.demo_tokenizer import build_tokenizer
from llavakit.training.demo_vision import PatchHeads

MIX = {"scene": 1, "page": 1, "several": 1, "interleaved": 1, "schema": 1, "plain": 1}
MIX |= {"copying": 2, "talk": 1}


@pytest.fixture(scope="module")
def lessons():
    return Lessons(build_tokenizer(), draw_many("scene", 0, 3), draw_many("page", 0, 3), seed=1)


@pytest.fixture(scope="module")
def model():
    return build_model(seed=1, image_token_id=1880, pad_token_id=1881).eval()


def test_a_branch_reads_as_a_prompt_of_its_own(lessons, model):
    trunk, first, second = [1, 5, 6, 7], [10, 11, 12], [20, 21]
    tree = Tree()
    at = tree.add(trunk, 0, 0)
    tree.add(first, 1, at)
    tree.add(second, 2, at, "task")
    batch = lessons.pack([tree, tree])
    embed = model.model.language_model.embed_tokens
    with torch.no_grad():
        packed = text_states(model, embed(batch.tokens), batch.mask, batch.positions)
        alone = text_states(model, embed(torch.tensor([trunk + second])))
    assert torch.allclose(packed[0, 7:9], alone[0, 4:6], atol=1e-5)
    assert torch.allclose(packed[0, 16:18], alone[0, 4:6], atol=1e-5)


def test_only_answers_and_their_end_are_learnt(lessons):
    tree = lessons.dialogue_tree(Dialogue("t", (("What is 1?", "one"), ("And 2?", "two"))), [])
    learnt = [label for label in tree.labels if label != IGNORED]
    assert learnt == [*lessons.ids(" one"), lessons.end, *lessons.ids(" two"), lessons.end]


def test_a_dialogue_has_the_tokens_of_its_prompt(lessons):
    dialogue = Dialogue("t", (("Hi <there>", "yo"), ("And?", "two")), system="Be brief.")
    tree = lessons.dialogue_tree(dialogue, [])
    whole = [lessons.start, *lessons.ids(f"{dialogue.prompt()} two"), lessons.end]
    assert tree.tokens == whole


def test_pictures_have_as_many_tokens_as_patches(lessons):
    batches = lessons.batch(MIX, 3000)
    images = sum(int((batch.tokens == lessons.image).sum()) for batch in batches)
    assert images == 64 * sum(len(batch.pixels) for batch in batches)


def test_equal_seeds_give_equal_batches(lessons):
    def batch():
        again = Lessons(build_tokenizer(), *lessons.store.values(), seed=3)
        return again.batch(MIX, 3000)

    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batch(), batch(), strict=True))


def test_every_trained_part_gets_a_gradient(lessons, model):
    heads = PatchHeads()
    alignment = WordAlignment(build_tokenizer())
    batch = max(lessons.batch(MIX, 3000), key=lambda batch: len(batch.pixels))
    loss, parts = joint_loss(model, heads, alignment, batch, random.Random(1), tally := {})
    loss.backward()
    assert loss.isfinite() and set(parts) >= {"patch", "word", "answers"} and tally
    for name, parameter in model.named_parameters():
        unread = "layers.4." in name and "vision" in name
        if not unread and "post_layernorm" not in name:
            assert parameter.grad is not None, name
    model.zero_grad()
