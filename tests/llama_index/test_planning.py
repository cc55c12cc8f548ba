"""The framework plans with 2125 tokens an image; our prompt helper asks the model."""

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import ImageNode, NodeWithScore

from llavakit.errors import ContextLengthError, SourceNotAllowedError
from llavakit.llama_index import LLaVA
from llavakit.llama_index.planning import MeasuredImage
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.llama_index.pictures import Case, draw, png_of

ANSWER = RichPromptTemplate(
    '{% chat role="user" %}{% for message in context_messages %}{% for block in message.blocks %}'
    "{% if block.block_type == 'image' %}{{ block.inline_url() | image }}{% endif %}"
    "{% endfor %}{% endfor %}{{ query_str }}{% endchat %}"
)


@pytest.fixture
def nodes(tmp_path):
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png_of(draw("ellipse", (200, 10 * number, 10))))
        made.append(NodeWithScore(node=ImageNode(image_path=str(path)), score=1.0))
    return made


def pictures_per_call(nodes, **arguments):
    fake = FakeBackend(["red"])
    llm = LLaVA(backend=fake)
    helper = {"chat_prompt_helper": llm.chat_prompt_helper()} if arguments.pop("ours") else {}
    synthesizer = get_response_synthesizer(
        llm=llm, multimodal=True, chat_content_qa_template=ANSWER, **helper, **arguments
    )
    synthesizer.synthesize("What?", nodes)
    return [sum(len(message.images) for message in r.messages) for r in fake.requests]


def test_four_pictures_fit_into_one_call_where_the_framework_makes_four(nodes):
    assert pictures_per_call(nodes, ours=False) == [1, 1, 1, 1]
    assert pictures_per_call(nodes, ours=True) == [4]


def test_a_picture_is_planned_with_the_tokens_that_it_has(case, demo_backend):
    llm = LLaVA(model="demo")
    message = ChatMessage(role="user", blocks=[ImageBlock(image=case.png), TextBlock(text="Hi")])
    (measured,) = llm.chat_prompt_helper()._measured([message])
    picture, text = measured.blocks
    assert isinstance(picture, MeasuredImage)
    assert 64 <= picture.tokens <= 66  # and what the template writes around it
    assert text is message.blocks[1] and message.blocks[0].estimate_tokens() == 2125
    (again,) = llm.chat_prompt_helper()._measured([measured])
    assert again.blocks[0] is picture


def test_the_window_is_the_models(demo_backend):
    helper = LLaVA(model="demo", max_tokens=100).chat_prompt_helper()
    assert (helper.context_window, helper.num_output) == (4096, 100)
    assert LLaVA(model="demo").chat_prompt_helper(num_output=7).num_output == 7


def test_planning_reads_files_under_the_policy(case: Case, tmp_path):
    fake = FakeBackend(policy=SourcePolicy(roots=(tmp_path / "elsewhere",)))
    helper = LLaVA(backend=fake).chat_prompt_helper()
    message = ChatMessage(role="user", blocks=[ImageBlock(path=case.path)])
    with pytest.raises(SourceNotAllowedError):
        helper.repack(ANSWER, [message])


def test_the_engine_counts_for_itself_and_refuses_what_does_not_fit(case, demo_backend):
    llm = LLaVA(model="demo", temperature=0)
    message = ChatMessage(role="user", blocks=[ImageBlock(image=case.png)] * 70)
    with pytest.raises(ContextLengthError) as refused:
        llm.chat([message])
    assert refused.value.context_length == 4096
    assert refused.value.prompt_tokens == llm.count_tokens([message]) > 70 * 64
