"""Answers are read and scored as the original's scripts do it: its own values, and laws."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import InputError
from llavakit.evaluation.answers import (
    gqa_answer,
    mme_answer,
    pope_answer,
    review_scores,
    science_answer,
    textvqa_question,
    vqa_answer,
)
from llavakit.evaluation.metrics import Counts, anls, distance, vqa_accuracy

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "parity" / "eval.json").read_text())

texts = st.text(max_size=12)
words = st.text(string.ascii_lowercase, min_size=1, max_size=8).filter(
    lambda word: vqa_answer(word) == word
)
labels = st.sampled_from(["yes", "no"])
pairs = st.lists(st.tuples(st.sampled_from(["yes", "no", None]), labels), max_size=40)


@pytest.mark.parametrize(("text", "answer"), GOLDEN["vqa_answer_processor"])
def test_vqa_answers_are_read_as_by_the_original(text, answer):
    assert vqa_answer(text) == answer


@pytest.mark.parametrize("case", GOLDEN["textvqa"], ids=lambda case: case["pred"])
def test_vqa_accuracy_is_the_originals(case):
    assert vqa_accuracy(case["pred"], case["gt"]) == pytest.approx(case["acc"])


@pytest.mark.parametrize(("prompt", "question"), GOLDEN["textvqa_prompt"])
def test_questions_are_found_in_prompts_of_textvqa(prompt, question):
    assert textvqa_question(prompt) == question


def test_other_prompts_of_textvqa():
    assert textvqa_question("OCR tokens: A. Question: What Is it? Short answer:") == "what is it?"
    assert textvqa_question("Reference OCR token: A\nWhat?\nAnswer.") == "what?"
    for prompt in ("What?", "One\ntwo\nthree", "OCR tokens: A"):
        with pytest.raises(InputError, match="forms of TextVQA"):
            textvqa_question(prompt)


def test_pope_counts_as_the_original():
    pope = GOLDEN["pope"]
    read = [pope_answer(text) for text in pope["answers"]]
    assert read == pope["parsed"]
    counts = Counts.of(zip(read, pope["labels"], strict=True))
    printed = (
        "TP\tFP\tTN\tFN\t\n"
        f"{counts.tp}\t{counts.fp}\t{counts.tn}\t{counts.fn}\n"
        f"Accuracy: {counts.accuracy}\nPrecision: {counts.precision}\nRecall: {counts.recall}\n"
        f"F1 score: {counts.f1}\nYes ratio: {counts.yes_ratio}\n"
        f"{counts.f1:.3f}, {counts.accuracy:.3f}, {counts.precision:.3f}, {counts.recall:.3f}, "
        f"{counts.yes_ratio:.3f}\n"
    )
    assert printed == pope["printed"]


@pytest.mark.parametrize(("review", "scores"), GOLDEN["gpt_review_parse"])
def test_reviews_are_read_as_by_the_original(review, scores):
    assert review_scores(review) == (None if scores == [-1, -1] else tuple(scores))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The Cats.", "cats"),
        ("seven (7)", "7 7"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("somebody'd", "somebodyd"),
        ("shouldntve", "shouldntve"),
        ("shouldnt've", "shouldn't've"),
        ("an old-fashioned, red\nbus", "old fashioned red bus"),
        ("rock - n - roll", "rock n roll"),
        ("1,000", "1000"),
        ("." * 40, "." * 8),  # the original takes away 32 points and no more
    ],
)
def test_corners_of_vqa_answers(text, answer):
    assert vqa_answer(text) == answer


def test_answers_of_the_other_benchmarks():
    assert [gqa_answer(text) for text in ("Yes.", "red..", "No. 5")] == ["yes", "red", "no. 5"]
    said = ["Yes", "no.", "Not sure", "It is not", "yes, it is", "The yes", ""]
    assert [mme_answer(text) for text in said] == ["yes", "no", "no", None, "yes", None, None]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1), ("B. red", 1), ("The answer is B.", 1), ("b", None), ("B.", None), ("B)", None),
        ("The answer is A. No, The answer is B.", None), ("D", None), ("E", None), ("", None),
    ],
)  # fmt: skip
def test_letters_of_scienceqa(text, choice):
    assert science_answer(text, 3) == choice


def test_vqa_accuracy_by_hand():
    people = ["red"] * 3 + ["blue"] * 6 + ["green"]
    # One of the three is left out in three of ten rounds: 3 * 2/3 + 7 * 1.
    assert vqa_accuracy("Red.", people) == pytest.approx(0.9)
    assert vqa_accuracy("the blue", people) == 1
    assert vqa_accuracy("green", people) == pytest.approx(0.3)
    assert vqa_accuracy("pink", people) == 0


def test_anls_by_hand():
    assert anls("Invoice 17", ["invoice 17"]) == 1
    assert anls("invoice 18", ["invoice 17", "17"]) == pytest.approx(0.9)
    assert anls("ab", ["ac"]) == 0.5  # exactly one half still counts
    assert anls("abc", ["axy"]) == 0
    assert anls("", [""]) == 1 and anls("", ["a"]) == 0
    assert distance("kitten", "sitting") == 3


@given(texts)
def test_reading_a_vqa_answer_ignores_case_commas_and_question_marks(text):
    ascii_text = text.encode("ascii", "ignore").decode()
    read = vqa_answer(ascii_text)
    assert vqa_answer(ascii_text.upper()) == read
    assert vqa_answer(f"{ascii_text},") == read and vqa_answer(f" {ascii_text}?") == read


@given(texts, st.lists(texts, min_size=1, max_size=10))
def test_vqa_accuracy_is_a_share(answer, people):
    assert 0 <= vqa_accuracy(answer, people) <= 1


@given(words, st.lists(words, min_size=9, max_size=9), st.randoms())
def test_vqa_accuracy_knows_no_order_and_grows_with_agreement(answer, people, rng):
    mixed = list(people)
    rng.shuffle(mixed)
    others = vqa_accuracy(answer, ["x1", *people])
    assert vqa_accuracy(answer, [*mixed, "x1"]) == pytest.approx(others)
    assert vqa_accuracy(answer, [answer, *people]) >= others
    assert vqa_accuracy(answer.upper() + ".", ["x1", *people]) == others


@given(words)
def test_an_answer_that_all_people_gave_is_right(answer):
    assert vqa_accuracy(answer, [answer] * 10) == 1


@given(texts, texts)
def test_anls_is_symmetric_and_jumps_from_nothing_to_one_half(one, other):
    worth = anls(one, [other])
    assert worth == 0 or 0.5 <= worth <= 1
    assert worth == anls(other, [one])
    assert anls(one, [one]) == 1


@given(st.text(string.ascii_letters + " ", max_size=12), st.lists(texts, min_size=1, max_size=4))
def test_anls_ignores_case_and_spacing_and_more_right_answers_never_harm(answer, accepted):
    worth = anls(answer, accepted)
    assert anls(f"  {answer.upper()} ", accepted) == anls(answer.lower(), accepted) == worth
    assert anls(answer, [*accepted, "another"]) >= worth


@given(texts, texts, texts)
def test_distance_is_a_metric(one, other, third):
    assert distance(one, other) == distance(other, one)
    assert (distance(one, other) == 0) == (one == other)
    assert distance(one, third) <= distance(one, other) + distance(other, third)
    assert abs(len(one) - len(other)) <= distance(one, other) <= max(len(one), len(other))


@given(pairs)
def test_pope_counts_every_question_once_and_gives_shares(answered):
    counts = Counts.of(answered)
    assert counts.total == len(answered)
    assert counts.accuracy == (
        sum(said == label for said, label in answered) / len(answered) if answered else None
    )
    for share in (counts.precision, counts.recall, counts.f1, counts.yes_ratio):
        assert share is None or 0 <= share <= 1
    if counts.precision and counts.recall:
        mean = 2 * counts.precision * counts.recall / (counts.precision + counts.recall)
        assert counts.f1 == pytest.approx(mean)


@given(pairs, labels)
def test_one_more_right_answer_makes_nothing_in_pope_worse(answered, label):
    before, after = Counts.of(answered), Counts.of([*answered, (label, label)])
    for name in ("accuracy", "precision", "recall", "f1"):
        assert getattr(after, name, None) is None or (
            getattr(after, name) >= (getattr(before, name) or 0)
        )


@given(pairs)
def test_no_answer_is_worth_what_a_wrong_one_is_in_pope(answered):
    other = {"yes": "no", "no": "yes"}
    wrong = [(other[label] if said is None else said, label) for said, label in answered]
    missing, wrong = Counts.of(answered), Counts.of(wrong)
    for name in ("accuracy", "precision", "recall", "f1"):
        assert getattr(missing, name) == getattr(wrong, name)


@given(pairs)
def test_swapping_yes_and_no_keeps_popes_accuracy_and_mirrors_its_yes_ratio(answered):
    answered = [(said, label) for said, label in answered if said is not None]
    other = {"yes": "no", "no": "yes"}
    swapped = Counts.of([(other[said], other[label]) for said, label in answered])
    counts = Counts.of(answered)
    assert swapped.accuracy == counts.accuracy
    if counts.yes_ratio is not None:
        assert swapped.yes_ratio == pytest.approx(1 - counts.yes_ratio)


@given(st.text("NoYesnt ,.", max_size=20), texts)
def test_only_the_first_sentence_counts_in_pope(first, rest):
    assert pope_answer(f"{first}.{rest}") == pope_answer(first)
