"""Each benchmark: its prompts, its scores, and the files for those who score elsewhere."""

import io
import json
import shutil

import pytest

import llavakit
from llavakit.errors import InputError, ParameterError, SourceNotFoundError
from llavakit.evaluation import BENCHMARKS, Data, open_benchmark, to_table
from llavakit.testing import FakeBackend
from llavakit.values import SamplingParams
from tests.evaluation.datasets import LETTER, SHORT, WRITERS, encoded
from tests.evaluation.test_scores import cells


def scores(results):
    return {score.name: score.value and round(score.value, 2) for score in results.scores}


def load(path):
    return json.loads(path.read_text())


def test_every_benchmark_is_tested_here():
    assert WRITERS.keys() == BENCHMARKS.keys()


# The demo model knows colours and shapes, so what it answers shows that pictures, prompts and
# scores belong together.


def test_the_demo_model_is_right_in_pope(ask, demo_backend):
    results, _ = ask("pope", demo_backend)
    found = scores(results)
    assert found.pop("F1, mean of categories") == 100
    assert {name.partition(": ")[0] for name in found} == {"random", "popular"}
    assert found.pop("random: yes ratio") == found.pop("popular: yes ratio") == 50
    assert set(found.values()) == {100} and results.errors == 0


@pytest.mark.parametrize("name", ["vqav2", "gqa", "textvqa", "vizwiz", "docvqa"])
def test_the_demo_model_names_colours(name, ask, written, demo_backend):
    root = written(name)
    data = Data(root, annotations=root / "val.json" if name in ("vqav2", "vizwiz") else None)
    results, _ = ask(name, demo_backend, data)
    wanted = {
        "vqav2": {"accuracy": 100, "accuracy, other": 100},
        "gqa": {"accuracy": 100},
        # Two of ten people said so: 2 * 1/3 + 8 * 2/3, in tenths.
        "textvqa": {"accuracy": 60},
        "vizwiz": {"accuracy": 60},
        "docvqa": {"ANLS": 100},
    }
    assert scores(results) == wanted[name] and results.errors == 0


def test_the_demo_model_is_right_in_mme(ask, demo_backend):
    results, out = ask("mme", demo_backend)
    assert scores(results) == {
        "perception": 400, "cognition": None, "color": 200, "existence": 200,
    }  # fmt: skip
    lines = (out / "results/color.txt").read_text().splitlines()
    assert lines[0].split("\t") == [
        "a.txt", "Is there a red circle in the image? Please answer yes or no.", "Yes", "yes",
    ]  # fmt: skip


def test_a_picture_of_mme_counts_only_if_both_of_its_questions_are_right(ask):
    results, _ = ask("mme", FakeBackend(["Yes"]))
    assert scores(results) == {
        "perception": 100, "cognition": None, "color": 50, "existence": 50,
    }  # fmt: skip


def test_mme_by_hand(ask):
    """100 times the share of right answers, and 100 times that of images with both right.

    What is neither a yes nor a no is wrong, even where a no was wanted.
    """
    said = [
        # color, a question to be answered with yes and one with no about each of three pictures:
        *("Yes", "no."),  # both right
        *("yes, it is", "Yes"),  # one right
        *("Maybe.", "No, a blue one."),  # one right
        # existence:
        *("It shows a circle.", "It is not there."),  # neither is a yes or a no
        *("Yes", ""),  # one right
        *("No", "yes"),  # none right
    ]
    results, _ = ask("mme", said)
    color, existence = 100 * (4 / 6 + 1 / 3), 100 * (1 / 6 + 0 / 3)
    assert scores(results) == {
        "perception": round(color + existence, 2),
        "cognition": None,
        "color": round(color, 2),
        "existence": round(existence, 2),
    }


def test_a_question_of_mme_that_stands_twice_counts_once_with_its_first_answer(ask, written):
    path = written("mme") / "llava_mme.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *others, first]))
    results, out = ask("mme", ["Yes", "No"] * 6 + ["No"])
    assert scores(results)["color"] == scores(results)["existence"] == 200
    lines = (out / "results/color.txt").read_text().splitlines()
    assert len(lines) == 6 and lines[0].endswith("\tYes\tYes")


# Everything else is about forms, and a script answers.


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_are_greedy_and_have_the_picture_first(name, ask):
    backend = FakeBackend(["x"])
    ask(name, backend)
    longest = (
        1024 if name in ("mmbench", "mmbench-cn", "mmvet", "scienceqa", "llava-bench") else 128
    )
    assert {request.params for request in backend.requests} == {
        SamplingParams(longest, temperature=0.0)
    }
    pictures = [request.messages[0].images for request in backend.requests]
    assert sum(not shown for shown in pictures) == (1 if name == "scienceqa" else 0)
    for request in backend.requests:
        assert isinstance(request.messages[0].content[-1], llavakit.Text)


def prompts(backend):
    return [request.messages[0].text for request in backend.requests]


def test_vqav2_gives_the_upload_file_of_the_whole_test_split(ask):
    results, out = ask("vqav2", ["Two dogs.", "a red-car", "no"])
    assert load(out / "upload.json") == [
        {"question_id": 99, "answer": ""},
        {"question_id": 100, "answer": "2 dogs"},
        {"question_id": 101, "answer": "red car"},
        {"question_id": 102, "answer": "no"},
    ]
    assert results.scores == () and "EvalAI" in to_table(results)


def test_vizwiz_gives_the_upload_file_by_picture(ask):
    _, out = ask("vizwiz", ["Unanswerable."])
    assert load(out / "upload.json") == [
        {"image": name, "answer": "unanswerable"} for name in ("a.png", "b.png", "c.png")
    ]


def test_textvqa_passes_the_ocr_tokens_of_its_prompts_on(ask, written):
    path = written("textvqa") / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text(path.read_text().replace("?\\n", "?\\nReference OCR token: A, B\\n"))
    backend = FakeBackend(["x"])
    results, _ = ask("textvqa", backend)
    assert prompts(backend)[0] == f"What colour is the circle?\nReference OCR token: A, B\n{SHORT}"
    assert scores(results) == {"accuracy": 100}  # eight of ten people said x


def test_an_annotation_of_textvqa_that_stands_twice_counts_where_it_stands_last(ask, written):
    path = written("textvqa") / "TextVQA_0.5.1_val.json"
    first, second, third = load(path)["data"]
    later = {**first, "question": first["question"].lower(), "answers": ["last"] * 10}
    path.write_text(json.dumps({"data": [first, second, third, later]}))
    results, _ = ask("textvqa", ["last"])
    assert scores(results) == {"accuracy": 33.33}  # of the first question, all people said so
    path.write_text(json.dumps({"data": [later, first, second, third]}))
    results, _ = ask("textvqa", ["last"], restart=True)
    assert scores(results) == {"accuracy": 0}


def test_gqa_gives_the_predictions_of_its_own_script_without_its_annotations(ask, written):
    shutil.rmtree(written("gqa") / "data")
    results, out = ask("gqa", ["Red."])
    assert results.scores == () and "eval.py" in to_table(results)
    assert load(out / "testdev_balanced_predictions.json")[0] == {
        "questionId": 100, "prediction": "red",
    }  # fmt: skip


def test_mmbench_asks_with_hint_and_options_and_fills_the_table_in(ask):
    backend = FakeBackend(["A", "B", "A"])
    results, out = ask("mmbench", backend)
    assert prompts(backend) == [
        f"What colour is it?\nA. red\nB. blue\nC. green\n{LETTER}",
        f'Look.\nWhat "shape"\nis it?\nA. 1\nB. 2\n{LETTER}',
        # A choice called "None of them" is one; only the word alone is a missing value.
        f"Which?\nA. x\nB. y\nC. z\nD. None of them\n{LETTER}",
    ]
    assert scores(results) == {"right letters, asked once": 66.67}
    assert cells((out / "upload.xlsx").read_bytes()) == [
        ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"],
        [0, "What colour is it?", "red", "blue", "green", "", "A", "A", "dev"],
        [1, 'What "shape"\nis it?', 1, 2, "", "", "B", "B", "dev"],
        [2, "Which?", "x", "y", "z", "None of them", "A", "D", "dev"],
    ]


def test_mmbench_shows_the_pictures_of_its_table(ask):
    backend = FakeBackend(["A"])
    ask("mmbench", backend)
    (shown,) = backend.requests[1].messages[0].images
    picture = llavakit.images.open_picture(shown.source, from_url_field=True)
    assert shown.source == encoded("b.png") and picture.rgb.getpixel((60, 60)) == (0, 0, 255)


def test_mmbench_in_chinese_asks_in_chinese(ask):
    backend = FakeBackend(["A"])
    ask("mmbench-cn", backend)
    assert prompts(backend)[0].endswith("C. green\n请直接回答选项字母。")


def test_seed_wants_the_letter_alone_and_refuses_videos(ask):
    results, out = ask("seed", ["A", "B.", "C"])
    assert scores(results) == {
        "accuracy, all": 50, "accuracy, image": 66.67, "accuracy, Scene Understanding": 66.67,
        "accuracy, video": 0, "accuracy, Action": 0,
    }  # fmt: skip
    assert results.errors == 1
    last = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()][-1]
    assert "v.mp4): this is a video" in last["error"]["message"]
    assert (out / "upload.jsonl").read_text().splitlines()[0] == (
        '{"question_id": "0", "prediction": "A"}'
    )


def test_scienceqa_takes_letters_in_three_forms(ask):
    backend = FakeBackend(["B. y", "The answer is C."])
    results, _ = ask("scienceqa", backend)
    assert scores(results) == {"accuracy": 100, "accuracy, with an image": 100}
    assert prompts(backend) == [
        f"Which?\nA. x\nB. y\n{LETTER}", f"Why?\nA. x\nB. y\nC. z\n{LETTER}",
    ]  # fmt: skip


def test_mmvet_gives_the_file_of_its_scorer(ask):
    results, out = ask("mmvet", ["red\n", "It is blue.", ""])
    assert load(out / "upload.json") == {"v1_100": "red", "v1_101": "It is blue.", "v1_102": ""}
    assert "upload.json" in to_table(results)


def test_llava_bench_sums_reviews_up_that_were_made_elsewhere(ask, written):
    root = written("llava-bench")
    results, _ = ask("llava-bench", ["x"], Data(root, annotations=root / "reviews.jsonl"))
    assert scores(results) == {
        "relative score, all": 87.5, "relative score, conv": 75, "relative score, detail": 100,
    }  # fmt: skip


def test_docvqa_finds_the_pictures_of_the_newer_download(ask, written):
    root = written("docvqa")
    (root / "documents").rename(root / "spdocvqa_images")
    results, out = ask("docvqa", ["Red", "blu", "?"])
    assert results.errors == 0 and scores(results) == {"ANLS": round(100 * (1 + 0.75) / 3, 2)}
    assert load(out / "upload.json")[0] == {"questionId": 100, "answer": "Red"}


# What is wrong with the files is told before anything is asked.

HURT = [
    ("pope", "llava_pope_test.jsonl", None, "POPE|questions are missing.*llava_pope_test.jsonl"),
    ("pope", "llava_pope_test.jsonl", b'{"question_id": 1}\n', "line 1: there is no 'image'"),
    ("pope", "llava_pope_test.jsonl", b"{}\n{\n", "line 2: this is not JSON"),
    ("pope", "llava_pope_test.jsonl", b"\n\n[1]\n", "line 3: this is not a JSON object"),
    ("pope", "llava_pope_test.jsonl", b"", "is empty"),
    ("pope", "coco/coco_pope_random.json", b'{"label": "yes"}\n', "no label for question 1"),
    ("pope", "coco/coco_pope_random.json", b'{"label": 1}\n', "line 1: 'label' must be text"),
    ("pope", "coco/coco_pope_random.json", b'{"label": "?"}\n', "line 1: the label is '\\?'"),
    ("pope", "coco/coco_pope_popular.json", None, "coco_pope_popular.json is missing"),
    ("pope", "coco/coco_pope_random.json", b'{"image": "b.png"}\n', "not in the order"),
    ("gqa", "data/testdev_balanced_questions.json", b"{}", "has no question 100"),
    ("gqa", "data/testdev_balanced_questions.json", b"{\n,", "line 2: this is not JSON"),
    ("textvqa", "TextVQA_0.5.1_val.json", b'{"data": [{"question": "x"}]}', "question number 1: "),
    ("textvqa", "TextVQA_0.5.1_val.json", b"[]", "must be an object with 'data'"),
    ("mmbench", "mmbench_dev_20230712.tsv", b"index\tquestion\n", "holds no questions"),
    ("mmbench", "mmbench_dev_20230712.tsv", b"index\tquestion\n1\n", "line 2: there are 1 values"),
    ("mmbench", "mmbench_dev_20230712.tsv", b"index\tA\n1\t2\n", "no column 'question'"),
    ("mmbench", "mmbench_dev_20230712.tsv", b"\xff\xfe", "not UTF-8"),
    ("seed", "SEED-Bench.json", b'{"questions": [], "question_type": {}}', "no question 0"),
    ("scienceqa", "problems.json", b'{"1": {"answer": "B"}}', "'1': 'answer' must be a whole"),
    ("scienceqa", "llava_test_CQM-A.json", b'[{"id": "1"}]', "number 1: 'conversations'"),
    ("docvqa", "val_v1.0_withQT.json", b'{"data": []}', "holds no questions"),
    ("mme", "MME_Benchmark_release_version/existence/a.txt", b"x\n", "line 1: this must be"),
    ("mme", "MME_Benchmark_release_version/existence/b.txt", b"x\tYes\n", "not have the question"),
    ("mme", "MME_Benchmark_release_version/existence/c.txt", None, "annotations are missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "told"), HURT)
def test_a_missing_or_damaged_file_is_named_with_its_line(name, file, content, told, written):
    path = written(name) / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        open_benchmark(name, Data(written(name)))
    assert path.name.partition(".")[0] in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_and_a_name_that_is_none(tmp_path):
    with pytest.raises(SourceNotFoundError, match="is not a folder"):
        open_benchmark("pope", Data(tmp_path / "none"))
    with pytest.raises(SourceNotFoundError, match="no such file"):
        open_benchmark("pope", Data(tmp_path, questions=tmp_path / "none.jsonl"))
    with pytest.raises(ParameterError, match="no benchmark 'popes'; there are docvqa, gqa"):
        open_benchmark("popes", Data(tmp_path))


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../a.png", ""])
def test_pictures_outside_their_folder_are_not_opened(name, written, ask):
    root = written("mmvet")
    path = root / "llava-mm-vet.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["image"] = name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backend = FakeBackend(["x"])
    results, out = ask("mmvet", backend)
    assert results.errors == 1 and len(backend.requests) == 2
    assert "is not below" in (out / "answers.jsonl").read_text().splitlines()[1]


def test_damaged_pictures_of_a_table_are_rows_with_errors(written, ask, demo_backend):
    path = written("mmbench") / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace(encoded("b.png"), "/etc/hostname"))
    results, _ = ask("mmbench", demo_backend)
    assert results.errors == 1 and "1 without an answer" in to_table(results)


def test_short_prompts_are_those_of_the_original(written):
    read = open_benchmark("docvqa", Data(written("docvqa")))
    assert read.questions[0].prompt == f"What colour is the circle?\n{SHORT}"
    assert io.StringIO(read.questions[0].prompt).readlines()[1] == SHORT
