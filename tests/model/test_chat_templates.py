"""Checkpoints' own chat templates take every conversation that an answer can follow."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.backend import to_request
from llavakit.errors import MessageError
from llavakit.model.loader import load_reader
from llavakit.model.tokens import PromptTokenizer
from llavakit.prompts.conversation import to_turns
from tests.families import CHATML, LLAMA_3, MISTRAL, VICUNA
from tests.tiny import TinyModel

STRICT = (
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user') }}{% endif %}"
    "{% for c in m['content'] %}"
    "{% if m['role'] == 'user' %}[INST] {{ c['text'] | trim }} [/INST]"
    "{% else %} {{ c['text'] | trim }}</s>{% endif %}{% endfor %}{% endfor %}"
)
ONLY_USERS = (
    "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('Only users') }}"
    "{% endif %}{{ m['content'][0]['text'] }}{% endfor %}"
)
MUTE = "{% for m in messages if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% endfor %}"


@pytest.fixture
def own(tiny: TinyModel):
    """Makes the tokenizer of a checkpoint with this chat template."""
    read = load_reader(tiny.path).tokenizer

    def with_template(template: str) -> PromptTokenizer:
        tokenizer = copy.deepcopy(read.tokenizer)
        tokenizer.chat_template = template
        return PromptTokenizer(tokenizer, read.image_id)

    return with_template


def written(prompts: PromptTokenizer, *messages: Message, begun: bool = False) -> str:
    return prompts.render(to_turns(to_request(messages, continue_final_message=begun)))


HI, HELLO, GO = Message("user", "Hi"), Message("assistant", "Hello."), Message("system", "Go.")


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (VICUNA, [HI, HELLO], "USER: Hi ASSISTANT: Hello. ASSISTANT:"),
        (VICUNA, [GO], "Go. ASSISTANT:"),
        (CHATML, [HI, HELLO], "Hello.<|im_end|><|im_start|>assistant\n"),
        (LLAMA_3, [HI, HELLO], "Hello.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        # These mark no turn of the assistant: it answers an instruction, if an empty one.
        (MISTRAL, [HI, HELLO], "[INST] Hi [/INST] Hello.</s> [INST]  [/INST]"),
        (MISTRAL, [GO], "<<SYS>>\nGo.\n<</SYS>>\n\n[INST]  [/INST]"),
        (STRICT, [HI, HELLO], "[INST] Hi [/INST] Hello.</s>[INST]  [/INST]"),
        (STRICT, [HELLO, HI], "[INST]  [/INST] Hello.</s>[INST] Hi [/INST]"),
        (STRICT, [HELLO], "[INST]  [/INST] Hello.</s>[INST]  [/INST]"),
        (STRICT, [HI, HELLO, HELLO], "[/INST] Hello.\nHello.</s>[INST]  [/INST]"),
        (STRICT, [HI, HI], "[INST] Hi\nHi [/INST]"),
    ],
)
def test_a_turn_of_the_assistant_begins_whoever_spoke_last(own, template, messages, expected):
    assert written(own(template), *messages).endswith(expected)


@pytest.mark.parametrize("template", [VICUNA, CHATML, LLAMA_3, MISTRAL, STRICT])
@pytest.mark.parametrize("words", ["Hello.", "Hello. ", "It is", "It", "Hi"])
def test_a_begun_answer_goes_on_where_its_text_ends(own, template, words):
    prompts = own(template)
    begun = written(prompts, HI, Message("assistant", words), begun=True)
    assert begun.endswith(words)
    asked = written(prompts, HI)
    assert begun.startswith(asked) and begun[len(asked) :].strip() == words.strip()
    if not words.endswith(" "):
        expected = prompts.tokenizer.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": [{"type": "text", "text": words}]},
            ],
            tokenize=False,
            continue_final_message=True,
        )
        assert begun == expected


def test_a_begun_answer_alone_in_a_template_of_alternating_turns(own):
    assert written(own(STRICT), Message("assistant", "It is"), begun=True) == (
        "[INST]  [/INST] It is"
    )


def test_an_empty_message_of_the_system_is_no_fault_of_the_template(own):
    assert written(own(MISTRAL), Message("system", ""), HI).endswith("[INST] Hi [/INST]")


def test_what_a_template_refuses_is_told_in_a_sentence(own):
    with pytest.raises(MessageError, match=r"refuses the conversation \(Only users\); give it"):
        written(own(ONLY_USERS), GO, HI)
    with pytest.raises(MessageError, match="leave continue_final_message out"):
        written(own(MUTE), HI, Message("assistant", "It"), begun=True)


def reference(tiny: TinyModel, messages: list[dict], picture, **how: bool) -> list[int]:
    """The ids that plain transformers goes on with."""
    text = tiny.processor.apply_chat_template(messages, tokenize=False, **how)
    inputs = tiny.processor(images=[picture], text=text, return_tensors="pt")
    with torch.inference_mode():
        out = tiny.model.generate(
            **inputs,
            max_new_tokens=24,
            do_sample=False,
            suppress_tokens=tiny.forbidden,
            pad_token_id=0,
        )
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("words", ["The answer is", "The answer is ", "é🐱"])
def test_greedy_continuations_equal_those_of_transformers(
    tiny: TinyModel, words: str, monkeypatch: pytest.MonkeyPatch
):
    picture = PILImage.new("RGB", (20, 16), "red")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": words}]},
    ]
    expected = reference(tiny, messages, picture, continue_final_message=True)
    assert expected != reference(tiny, messages, picture, add_generation_prompt=True)
    backend = llavakit.load(tiny.path)
    loop = backend._get_engine()._loop
    submit, submitted = loop.submit, []
    monkeypatch.setattr(loop, "submit", lambda one: (submitted.append(one), submit(one)))
    asked = [Message("user", [Image(picture), "What is it?"]), Message("assistant", words)]
    params = SamplingParams(max_tokens=24, temperature=0)
    backend.generate(asked, params, continue_final_message=True)
    assert submitted[0].tokens[submitted[0].prompt_length :] == expected
