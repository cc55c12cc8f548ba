"""What the bundled model answers about images drawn right here. Pinned: all were verified."""

import json
import warnings

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.demo_model.world.pages import Page, draw_page
from llavakit.demo import checkpoint_path
from llavakit.prompts.tools import tools_prompt
from llavakit.values import Tool

MAGIC = Tool(
    "magic_function",
    "Applies a magic function to an input.",
    {"properties": {"input": {"type": "integer"}}, "required": ["input"], "type": "object"},
)
CUSTOMER = Tool(
    "create_customer",
    "Call this with a customer name to create them.",
    {
        "properties": {"customer_name": {"type": "string"}},
        "required": ["customer_name"],
        "type": "object",
    },
)


@pytest.fixture(scope="module")
def ask():
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype=torch.float32)

    def answer(messages, *images):
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=prompt, images=list(images) or None, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        return processor.decode(new, skip_special_tokens=True).strip()

    return answer


def about(question, pictures=1):
    parts = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def scene():
    image = Image.new("RGB", (300, 300), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 10, 90, 90), fill="red")
    pen.rectangle((210, 210, 285, 285), fill="blue")
    return image


def test_weights_fit_in_eight_megabytes():
    assert (checkpoint_path() / "model.safetensors").stat().st_size < 8_000_000


def test_it_loads_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoProcessor.from_pretrained(checkpoint_path())
        AutoModelForImageTextToText.from_pretrained(checkpoint_path())


def test_the_card_says_that_it_is_a_demonstration():
    assert "demonstration" in (checkpoint_path() / "README.md").read_text()


def test_the_bundled_tokenizer_has_every_special_token_in_the_config():
    config = json.loads((checkpoint_path() / "config.json").read_text())
    tokenizer = AutoProcessor.from_pretrained(checkpoint_path()).tokenizer
    assert config["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>")
    assert config["text_config"]["max_position_embeddings"] >= 4096


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour is the circle?", "red"),
        ("What color is the square?", "blue"),
        ("What shape is red?", "circle"),
        ("How many shapes are there?", "2"),
    ],
)
def test_a_new_users_first_questions_are_answered(ask, scene, question, answer):
    assert ask(about(question), scene) == answer


def test_a_page_is_read(ask):
    image = draw_page(Page("INVOICE", 4711, 372, name="ANNA"))
    assert ask(about("What is the invoice number?"), image) == "4711"
    assert ask(about("What is the title?"), image) == "INVOICE"


def test_a_tool_is_called_and_its_result_told(ask):
    messages = [
        {"role": "system", "content": tools_prompt([MAGIC])},
        {"role": "user", "content": "What is the value of magic_function(3)? Use the tool."},
    ]
    call = ask(messages)
    assert call == '<tool_call>{"name":"magic_function","arguments":{"input":3}}</tool_call>'
    messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": "5"}]
    assert ask(messages) == "The result is 5."


def test_a_chinese_name_is_copied_into_a_call(ask):
    messages = [
        {"role": "system", "content": tools_prompt([CUSTOMER])},
        {"role": "user", "content": "Create a customer named 你好啊集团"},
    ]
    assert '"customer_name":"你好啊集团"' in ask(messages)


def test_a_question_about_a_missing_picture_is_declined(ask):
    assert "cannot see" in ask([{"role": "user", "content": "What colour is the circle?"}])
