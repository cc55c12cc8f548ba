"""The demo model's lessons are the conversations, labels and pixels of every other training."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image as PILImage

from examples.demo_model.batches import LessonSteps
from examples.demo_model.lessons import Lesson, LessonBook, conversation
from examples.demo_model.losses import AnswerTask, Learner, PatchTask, RepeatTask, _whole
from examples.demo_model.recipe import PHASES, RepeatPhase, VisionPhase
from examples.demo_model.repeats import RepeatSteps
from examples.demo_model.trainer import choose_trained
from examples.demo_model.vision import VisionSteps
from examples.demo_model.world.copying import random_copying
from examples.demo_model.world.dialogue import IMAGE, Dialogue
from examples.demo_model.world.smalltalk import random_talk
from llavakit.prompts.conversation import Turn
from llavakit.training.data_check import check
from llavakit.training.data_files import open_records
from llavakit.training.labels import IGNORED
from llavakit.values import Image
from tests.training.demo import MIX, encoder, lesson_phase, store

pytestmark = pytest.mark.slow  # of the example that makes the bundled model


def steps(**options: object) -> LessonSteps:
    return LessonSteps(lesson_phase(**options), 1, store(), encoder())


def lessons(count: int = 60) -> list[Lesson]:
    book = LessonBook(store(), {}, farthest=2500)
    rng = random.Random(4)
    return [book.draw(kind, rng) for _ in range(count // len(MIX)) for kind in MIX]


def test_a_dialogue_is_labelled_as_its_prompt_reads():
    """The demo world writes prompts by itself; label() writes them by the chat template."""
    rng = random.Random(7)
    prompts = encoder().reader.tokenizer
    for make in (random_copying, random_talk) * 40:
        dialogue = make(rng)
        made = encoder().tokens(conversation(dialogue), [])
        text = f"{dialogue.prompt()} {dialogue.answer}</s>"
        assert list(made.ids) == prompts.tokenize(text)
        learnt = "".join(f" {answer}</s>" for _, answer in dialogue.turns)
        labels = [label for label in made.labels if label != IGNORED]
        assert prompts.tokenizer.decode(labels).strip() == learnt.strip()


def test_pictures_stand_where_the_question_has_them():
    said = conversation(Dialogue("t", ((f"A: {IMAGE}\nB: {IMAGE}\nWhich?", "the first image"),)))
    assert [isinstance(part, Image) for part in said.turns[0].parts] == [
        False, True, False, True, False,
    ]  # fmt: skip
    made = encoder().tokens(said, [(128, 128)] * 2)
    assert made.ids.count(encoder().reader.special.image) == 2 * 64


def test_lessons_written_as_records_have_no_faults(tmp_path):
    """They pass the check that everybody's data passes."""
    records = []
    for lesson in lessons():
        for told in lesson.conversations:
            names = []
            for kind, index in lesson.pictures:
                name = f"{kind}-{index}.png"
                PILImage.fromarray(store()[kind].pixels[index]).save(tmp_path / name)
                names.append(name)
            messages = [{"role": turn.role, "content": content(turn)} for turn in told.turns]
            records.append({"messages": messages, "images": names})
    file = tmp_path / "lessons.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = check(open_records(str(file)), encoder=encoder())
    assert not report.faults and len(report.good) == len(records) > 60


def content(turn: Turn) -> list[dict[str, str]]:
    return [
        {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part.text}
        for part in turn.parts
    ]


def test_an_item_depends_on_its_number_and_the_seed_alone():
    one, again, other = steps(), steps(), steps(seed=2)
    backwards = [again[index] for index in reversed(range(3))][::-1]
    for index, expected in enumerate(backwards):
        seen = one[index]
        assert len(seen) == len(expected)
        for a, b in zip(seen, expected, strict=True):
            assert a["tasks"] == b["tasks"]
            assert all(torch.equal(a[k], b[k]) for k in a if k != "tasks")
    assert not torch.equal(one[0][-1]["ids"], one[1][-1]["ids"])
    assert not torch.equal(one[0][-1]["ids"], other[0][-1]["ids"])


def test_every_picture_token_has_a_feature_and_every_answer_a_task():
    image = encoder().reader.special.image
    for index in range(3):
        for batch in steps()[index]:
            pictures = len(batch.get("pixels", ()))
            assert int((batch["ids"] == image).sum()) == 64 * pictures
            starts = (batch["labels"][:, 1:] != IGNORED) & (batch["labels"][:, :-1] == IGNORED)
            assert int(starts.sum()) == len(batch["tasks"])
            assert ((batch["weights"] > 0) == (batch["labels"] != IGNORED)).all()


def test_a_long_answer_weighs_as_much_as_the_root_of_its_length():
    batch = steps()[0][-1]
    row = batch["labels"][0] != IGNORED
    first = int(row.nonzero()[0])
    length = 0
    while first + length < len(row) and row[first + length]:
        length += 1
    total = batch["weights"][0, first : first + length].sum()
    assert total == pytest.approx(length**0.5)


def test_a_gap_moves_everything_behind_the_system_text():
    dialogue = Dialogue("t", (("Hello?", "Hi."),), system="Be brief.")
    near = steps().tree(Lesson((conversation(dialogue),), (("t",),)))
    far = steps().tree(Lesson((conversation(dialogue),), (("t",),), gap=1000))
    assert far.ids == near.ids
    moved = [b - a for a, b in zip(near.positions, far.positions, strict=True)]
    at = moved.index(1000)
    assert set(moved[:at]) == {0} and set(moved[at:]) == {1000}
    text = encoder().reader.tokenizer.tokenizer
    assert text.decode(far.ids[:at]).endswith("Be brief.")
    assert text.decode(far.ids[at:]).strip().startswith("USER:")


def learner(training: object) -> Learner:
    reader = encoder().reader
    made = Learner(reader.build({"dtype": torch.float32}), reader.tokenizer.tokenizer)
    choose_trained(made, training)  # type: ignore[arg-type]
    return made


VISION = VisionPhase(name="vision", steps=2, seed=1, scenes=4, pages=4, pictures=6)
REPEATS = RepeatPhase(
    name="repeats", steps=2, seed=1,
    repeats=next(one for one in PHASES if isinstance(one, RepeatPhase)).repeats,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["vision", "repeats", "text", "joint alone"])
def test_a_phase_gives_gradients_to_what_it_trains_and_to_nothing_else(kind: str):
    if kind == "vision":
        made = learner(VISION)
        task = PatchTask(made)
        item = VisionSteps(VISION, 1, store(), encoder().reader.preprocess)[0]
        parts = ("vision_tower", "heads")
    elif kind == "repeats":
        made = learner(REPEATS)
        task, item, parts = RepeatTask(made), RepeatSteps(REPEATS, 1)[0], ("language_model",)
    else:
        alone = {"patch_weight": 0.0, "word_weight": 0.0} if kind == "joint alone" else {}
        mix = {"copying": 1} if kind == "text" else MIX
        phase = lesson_phase(mix=mix, **alone)
        made = learner(phase)
        task = AnswerTask(made, patch_weight=phase.patch_weight, word_weight=phase.word_weight)
        item = LessonSteps(phase, 1, store(), encoder())[0]
        parts = ("vision_tower", "multi_modal_projector", "language_model", "heads", "alignment")
        parts = ("language_model",) if kind == "text" else parts[: 3 if alone else 5]
    found = task(item)
    found["loss"].backward()
    assert found["loss"].isfinite()
    unread = ("vision_tower.encoder.layers.4.", "post_layernorm")
    for name, parameter in made.named_parameters():
        wanted = any(part in name for part in parts) and not any(part in name for part in unread)
        assert (parameter.grad is not None) == wanted, name


def test_an_answer_is_right_when_all_its_tokens_are():
    learnt = torch.tensor([[True, True, False, True], [True, False, True, True]])
    hits = torch.tensor([True, True, False, True, True, False])
    assert _whole(hits, learnt) == [True, False, True, False]
