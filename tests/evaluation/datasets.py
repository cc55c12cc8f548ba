"""Small data sets of drawn images in each benchmark's own format and layout."""

import base64
import json

from PIL import Image, ImageDraw

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
SCENES = {"a.png": ("circle", "red"), "b.png": ("square", "blue"), "c.png": ("triangle", "green")}


def draw(shape, colour):
    picture = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((30, 30, 90, 90), fill=colour)
    elif shape == "square":
        pen.rectangle((30, 30, 90, 90), fill=colour)
    else:
        pen.polygon([(30, 90), (90, 90), (60, 30)], fill=colour)
    return picture


def pictures(folder):
    folder.mkdir(parents=True)
    for name, (shape, colour) in SCENES.items():
        draw(shape, colour).save(folder / name)


def jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def asked(word="colour"):
    """A question about each image, and its answer."""
    for number, (name, (shape, colour)) in enumerate(SCENES.items()):
        yield 100 + number, name, f"What {word} is the {shape}?", colour


def questions(path, prompt="{}\n" + SHORT):
    jsonl(
        path,
        [
            {"question_id": identity, "image": name, "text": prompt.format(text)}
            for identity, name, text, _ in asked()
        ],
    )


def people(answer, others=0):
    return [{"answer": answer}] * (10 - others) + [{"answer": "other"}] * others


def vqav2(root):
    questions(root / "llava_vqav2_mscoco_test-dev2015.jsonl")
    jsonl(
        root / "llava_vqav2_mscoco_test2015.jsonl",
        [{"question_id": 99, "image": "z.png", "text": "?"}]
        + [
            {"question_id": identity, "image": name, "text": "?"}
            for identity, name, _, _ in asked()
        ],
    )
    pictures(root / "test2015")
    dump(
        root / "val.json",
        {
            "annotations": [
                {"question_id": identity, "answer_type": "other", "answers": people(colour)}
                for identity, _, _, colour in asked()
            ]
        },
    )


def gqa(root):
    questions(root / "llava_gqa_testdev_balanced.jsonl")
    pictures(root / "data/images")
    dump(
        root / "data/testdev_balanced_questions.json",
        {str(identity): {"answer": colour} for identity, _, _, colour in asked()},
    )


def textvqa(root):
    jsonl(
        root / "llava_textvqa_val_v051_ocr.jsonl",
        [
            {
                "question_id": name[0],
                "image": name,
                "text": f"{text}\n{SHORT}",
            }
            for _, name, text, _ in asked()
        ],
    )
    pictures(root / "train_images")
    data = [
        {"image_id": name[0], "question": text.upper(), "answers": [colour] * 2 + ["x"] * 8}
        for _, name, text, colour in asked()
    ]
    dump(root / "TextVQA_0.5.1_val.json", {"data": data})


def vizwiz(root):
    questions(root / "llava_test.jsonl")
    pictures(root / "test")
    dump(
        root / "val.json",
        [{"image": name, "answers": people(colour, 8)} for _, name, _, colour in asked()],
    )


def pope(root):
    """Half of the labels are yes; a second category asks about every second one only."""
    pictures(root / "val2014")
    lines, labels = [], {"random": [], "popular": []}
    for category, wanted in labels.items():
        for name, (shape, _) in SCENES.items():
            for thing in (shape, "circle" if shape != "circle" else "square"):
                text = f"Is there a {thing} in the image?"
                record = {"question_id": len(wanted) + 1, "image": name, "text": text}
                wanted.append({**record, "label": "yes" if thing == shape else "no"})
                lines.append({**record, "question_id": len(lines), "category": category})
                lines[-1]["text"] += f"\n{SHORT}"
    jsonl(root / "llava_pope_test.jsonl", lines)
    for category, wanted in labels.items():
        jsonl(root / "coco" / f"coco_pope_{category}.json", wanted)


def mme(root):
    release = root / "MME_Benchmark_release_version"
    lines = []
    for category, folder in (("color", "color/questions_answers_YN"), ("existence", "existence")):
        pictures(release / category / ("images" if "/" in folder else ""))
        for name, (shape, colour) in SCENES.items():
            (release / folder).mkdir(exist_ok=True)
            both = []
            for thing, label in ((f"{colour} {shape}", "Yes"), (f"pink {shape}", "No")):
                question = f"Is there a {thing} in the image?"
                both.append(f"{question}  Please answer yes or no.\t{label}\n")
                image = f"{category}/{'images/' if '/' in folder else ''}{name}"
                lines.append(
                    {
                        "question_id": f"{category}/{name}",
                        "image": image,
                        "text": f"{question}\n{SHORT}",
                    }
                )
            (release / folder / f"{name[0]}.txt").write_text("".join(both))
    jsonl(root / "llava_mme.jsonl", lines)


def encoded(name):
    from io import BytesIO

    buffer = BytesIO()
    draw(*SCENES[name]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mmbench(root, name="mmbench_dev_20230712.tsv"):
    header = [
        "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
        "l2-category", "comment", "split",
    ]  # fmt: skip
    rows = [
        ["0", "What colour is it?", "nan", "red", "blue", "green", "", "A", "c", encoded("a.png")],
        ["1", '"What ""shape""\nis it?"', "Look.", "1", "2", "", "", "B", "c", encoded("b.png")],
        ["2", "Which?", "", "x", "y", "z", "None of them", "D", "c", encoded("c.png")],
    ]
    text = "\t".join(header) + "\n"
    text += "".join("\t".join([*row, "s", "l", "nan", "dev"]) + "\n" for row in rows)
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def seed(root):
    pictures(root / "SEED-Bench-image")
    lines, truth = [], []
    for number, name in enumerate([*SCENES, "v.mp4"]):
        video = name.endswith(".mp4")
        folder = "SEED-Bench-video" if video else "SEED-Bench-image"
        text = f"Which?\nA. x\nB. y\nC. z\nD. w\n{LETTER}"
        lines.append({"question_id": number, "image": f"{folder}/{name}", "text": text})
        truth.append(
            {
                "question_id": str(number),
                "answer": "ABCD"[number],
                "question_type_id": 10 if video else 1,
                "data_type": "video" if video else "image",
            }
        )
    jsonl(root / "llava-seed-bench.jsonl", lines)
    dump(
        root / "SEED-Bench.json",
        {"questions": truth, "question_type": {"Scene Understanding": 1, "Action": 10}},
    )


def scienceqa(root):
    folder = root / "images/test"
    pictures(folder / "1")
    lines = [
        {
            "id": "1",
            "image": "1/a.png",
            "conversations": [{"from": "human", "value": "Which?\nA. x\nB. y\n<image>"}],
        },
        {"id": "2", "conversations": [{"from": "human", "value": "Why?\nA. x\nB. y\nC. z"}]},
    ]
    dump(root / "llava_test_CQM-A.json", lines)
    dump(
        root / "problems.json",
        {"1": {"answer": 1, "choices": ["x", "y"]}, "2": {"answer": 2, "choices": ["x", "y", "z"]}},
    )


def mmvet(root):
    questions(root / "llava-mm-vet.jsonl", "{}")
    pictures(root / "images")


def docvqa(root):
    pictures(root / "documents")
    data = [
        {
            "questionId": identity,
            "question": text,
            "image": f"documents/{name}",
            "answers": [f"{colour.upper()} "],
        }
        for identity, name, text, colour in asked()
    ]
    dump(root / "val_v1.0_withQT.json", {"data": data})


def llava_bench(root):
    jsonl(
        root / "questions.jsonl",
        [
            {"question_id": identity, "image": name, "category": "conv", "text": text}
            for identity, name, text, _ in asked()
        ],
    )
    pictures(root / "images")
    jsonl(
        root / "reviews.jsonl",
        [
            {"category": "conv", "content": "8 6\nworse"},
            {"category": "detail", "content": "", "tuple": [8, 8]},
        ],
    )


WRITERS = {
    "vqav2": vqav2,
    "gqa": gqa,
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "mmbench-cn": lambda root: mmbench(root, "mmbench_dev_cn_20231003.tsv"),
    "seed": seed,
    "scienceqa": scienceqa,
    "mmvet": mmvet,
    "docvqa": docvqa,
    "llava-bench": llava_bench,
}
