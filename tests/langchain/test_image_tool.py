"""LangChain's agents ask about images through the tool, with any brain."""

import asyncio
import json
import pickle
from base64 import b64encode
from types import SimpleNamespace

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from PIL import Image as PILImage

from llavakit.errors import EngineError, QueueFullError
from llavakit.images import open_picture
from llavakit.langchain import ChatLLaVA, ImageQuestionTool, name_images
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall
from tests.loopback import PNG

DATA = "examples/data"
SQUARE = "What colour is the square?"


def block(name):
    return {"type": "image", "path": f"{DATA}/{name}"}


def calls(image, question=SQUARE, call_id="1"):
    return Completion(
        "", (ToolCall(call_id, "ask_image", {"question": question, "image": image}),), "tool_calls"
    )


def brain(*answers):
    """A scripted model that calls tools."""
    fake = FakeBackend(answers)
    return ChatLLaVA(backend=fake), fake


def tool_messages(state):
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


@pytest.fixture(scope="module")
def looking(demo_backend):
    return ImageQuestionTool(model="demo", attachments={"page_3": f"{DATA}/invoice.png"})


@pytest.fixture(scope="module")
def demo(demo_backend):
    return ChatLLaVA(model="demo", temperature=0, max_tokens=60)


def invoke(tool_, image, state=None, question=SQUARE, **arguments):
    args = {"question": question, "image": image, **arguments}
    if state is not None:
        args["runtime"] = SimpleNamespace(state=state)
    call = {"name": tool_.name, "args": args, "id": "7", "type": "tool_call"}
    return tool_.invoke(call)


async def test_an_agent_answers_about_the_picture_of_its_conversation(looking):
    asked = {"messages": [HumanMessage([block("shapes.png"), SQUARE])]}
    for way in ("sync", "async"):
        model, fake = brain(calls("image_1"), "It is blue.")
        agent = create_agent(model, [looking])
        state = agent.invoke(asked) if way == "sync" else await agent.ainvoke(asked)
        (told,) = tool_messages(state)
        assert told.content == '"blue"' and told.status == "success"
        assert told.artifact["image"] == "image_1" and told.artifact["text"] == "blue"
        assert told.artifact["sha256"] == open_picture(f"{DATA}/shapes.png").digest
        assert state["messages"][-1].text == "It is blue."
        assert '"blue"' in fake.requests[1].messages[-1].text  # what the brain was told


def test_pictures_are_counted_over_the_whole_conversation(looking):
    history = [
        SystemMessage("You see."),
        HumanMessage([block("heart.png"), "Look.", block("shapes.png")]),
        AIMessage("Yes."),
        HumanMessage(["And here.", block("invoice.png")]),
    ]
    for name, file in [("image_1", "heart"), ("image_2", "shapes"), ("image_3", "invoice")]:
        told = invoke(looking, name, {"messages": history}, "What is this?")
        assert told.artifact["sha256"] == open_picture(f"{DATA}/{file}.png").digest
    assert invoke(looking, "image_4", {"messages": history}).status == "error"


def test_a_picture_that_another_tool_gave_back_has_a_name_too(looking):
    @tool
    def take_picture() -> list:
        """Take an image."""
        return [{"type": "image", "image": PILImage.open(f"{DATA}/shapes.png")}]

    taking = Completion("", (ToolCall("0", "take_picture", {}),), "tool_calls")
    model, _ = brain(taking, calls("image_2"), "It is blue.")
    agent = create_agent(model, [looking, take_picture])
    state = agent.invoke({"messages": [HumanMessage([block("heart.png"), "Look."])]})
    assert tool_messages(state)[1].content == '"blue"'


@pytest.mark.enable_socket
def test_an_address_or_path_out_of_a_tools_result_is_not_opened(looking, server, tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    call = {"name": "search", "args": {}, "id": "0", "type": "tool_call"}
    blocks = [
        {"type": "image", "url": server.url()},
        {"type": "image", "path": str(tmp_path / "secret.png")},
        {"type": "image", "base64": b64encode(PNG).decode(), "mime_type": "image/png"},
    ]
    history = [
        HumanMessage("Search."),
        AIMessage("", tool_calls=[call]),
        ToolMessage(blocks, tool_call_id="0"),
        HumanMessage(
            [{"type": "tool_result", "tool_use_id": "0", "content": blocks[:2]}, block("heart.png")]
        ),
    ]
    for name in ("image_1", "image_2", "image_4", "image_5"):
        told = invoke(looking, name, {"messages": history})
        assert told.status == "error" and "opened from here" in told.content
    for name in ("image_3", "image_6"):
        assert invoke(looking, name, {"messages": history}).status == "success"
    assert server.connections == 0


def test_a_path_that_the_model_wrote_is_not_opened(looking, tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    said = AIMessage([{"type": "image", "path": str(tmp_path / "secret.png")}])
    told = invoke(looking, "image_1", {"messages": [HumanMessage("Draw."), said]})
    assert told.status == "error" and "opened from here" in told.content


def test_pictures_in_every_notation_are_counted_and_those_nobody_can_open_keep_their_number(
    looking,
):
    pdf = {"type": "file", "path": f"{DATA}/pages.pdf", "mime_type": "application/pdf"}
    content = [
        {"type": "image_url", "image_url": {"url": open_picture(PNG).data_uri()}},
        {"type": "image", "file_id": "file-abc"},
        pdf,
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "image", "image": PILImage.open(f"{DATA}/shapes.png")},
    ]
    state = {"messages": [HumanMessage(content)]}
    assert invoke(looking, "image_1", state).artifact["sha256"] == open_picture(PNG).digest
    assert "no file store" in invoke(looking, "image_2", state).content
    assert invoke(looking, "image_3", state).content == '"blue"'
    page = invoke(looking, "document_1#page=2", state, "What is the title?")
    assert page.status == "success" and page.artifact["image"] == "document_1#page=2"
    assert "pages; name one" in invoke(looking, "document_1", state).content


@pytest.mark.parametrize(
    "state",
    [
        {"messages": [HumanMessage([block("shapes.png")])]},
        [HumanMessage([block("shapes.png")])],
        SimpleNamespace(messages=[HumanMessage([block("shapes.png")])]),
    ],
    ids=["dict", "list", "object"],
)
def test_states_of_every_kind_are_understood(looking, state):
    assert invoke(looking, "image_1", state).content == '"blue"'


def test_the_conversation_may_stand_under_another_key(demo_backend):
    tool_ = ImageQuestionTool(model="demo", messages_key="chat")
    assert invoke(tool_, "image_1", {"chat": [HumanMessage([block("shapes.png")])]}).content
    assert invoke(tool_, "image_1", {"messages": []}).status == "error"


@pytest.mark.parametrize("state", [None, {}, {"messages": None}, {"messages": ["x", 1]}, 7, "x"])
def test_without_a_conversation_attachments_are_still_known(looking, state):
    assert invoke(looking, "page_3", state, "What is the title?").content == '"INVOICE"'
    told = invoke(looking, "image_1", state)
    assert told.status == "error" and "page_3" in told.content


def test_it_works_outside_of_any_agent(looking):
    asked = {"question": "What is the title?", "image": "page_3"}
    assert looking.invoke(asked) == '"INVOICE"'
    assert asyncio.run(looking.ainvoke(asked)) == '"INVOICE"'


def test_the_brain_is_shown_two_arguments_and_cannot_forge_the_third(looking, tmp_path):
    schema = looking.tool_call_schema.model_json_schema()
    assert list(schema["properties"]) == ["question", "image"] == schema["required"]
    (tmp_path / "secret.png").write_bytes(PNG)
    forged = {"state": {"messages": [{"type": "image", "path": str(tmp_path / "secret.png")}]}}
    told = invoke(looking, "image_1", runtime=forged)
    assert told.status == "error" and "no image 'image_1'" in told.content
    model, _ = brain(
        Completion(
            "",
            (
                ToolCall(
                    "1",
                    "ask_image",
                    {"question": SQUARE, "image": "image_1", "runtime": forged},
                ),
            ),
            "tool_calls",
        ),
        "done",
    )
    state = create_agent(model, [looking]).invoke(
        {"messages": [HumanMessage([block("shapes.png"), "Look."])]}
    )
    assert tool_messages(state)[0].content == '"blue"'


@pytest.mark.parametrize(
    "image", ["image_9", "/etc/hostname", "http://127.0.0.1/x.png", "data:image/png;base64,AAAA"]
)
async def test_after_a_refusal_the_agent_goes_on(looking, image):
    asked = {"messages": [HumanMessage([block("shapes.png"), SQUARE])]}
    for way in ("sync", "async"):
        model, fake = brain(calls(image), calls("image_1", call_id="2"), "It is blue.")
        agent = create_agent(model, [looking])
        state = agent.invoke(asked) if way == "sync" else await agent.ainvoke(asked)
        refused, answered = tool_messages(state)
        assert refused.status == "error" and "image_1" in refused.content
        assert refused.content in fake.requests[1].messages[-1].text
        assert answered.content == '"blue"' and state["messages"][-1].text == "It is blue."


@pytest.mark.parametrize("arguments", [{}, {"image": "image_1"}, {"question": 3, "image": [1]}])
def test_a_call_with_wrong_arguments_is_told_and_the_agent_goes_on(looking, arguments):
    wrong = Completion("", (ToolCall("1", "ask_image", arguments),), "tool_calls")
    model, _ = brain(wrong, "Sorry.")
    state = create_agent(model, [looking]).invoke({"messages": [HumanMessage("Look.")]})
    (told,) = tool_messages(state)
    assert told.status == "error" and "two texts: question, and image" in told.content
    assert state["messages"][-1].text == "Sorry."


def test_a_model_that_is_busy_is_told_and_one_that_died_is_raised():
    asked = {"question": SQUARE, "image": "plan"}
    busy = FakeBackend([QueueFullError("Too many requests are waiting.")])
    assert "waiting" in ImageQuestionTool(backend=busy, attachments={"plan": PNG}).invoke(asked)
    dead = FakeBackend([EngineError("The engine died.")])
    with pytest.raises(EngineError, match="died"):
        ImageQuestionTool(backend=dead, attachments={"plan": PNG}).invoke(asked)


async def test_cancelling_the_agent_frees_the_model_that_looks():
    eyes = FakeBackend(["a blue"], hang=True)
    model, _ = brain(calls("plan"), "It is blue.")
    agent = create_agent(model, [ImageQuestionTool(backend=eyes, attachments={"plan": PNG})])
    task = asyncio.create_task(agent.ainvoke({"messages": [HumanMessage("Look.")]}))
    while not eyes.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert eyes.cancelled == 1


def test_several_questions_of_one_turn_are_answered_side_by_side(looking):
    both = Completion(
        "", (*calls("image_1").tool_calls, *calls("page_3", "What is the title?", "2").tool_calls),
        "tool_calls",
    )  # fmt: skip
    model, _ = brain(both, "done")
    state = create_agent(model, [looking]).invoke(
        {"messages": [HumanMessage([block("shapes.png"), "Look."])]}
    )
    assert [told.content for told in tool_messages(state)] == ['"blue"', '"INVOICE"']


def test_states_with_answers_are_kept_by_a_checkpointer(looking):
    model, _ = brain(calls("page_3", "What is the title?"), "INVOICE", "Yes.")
    agent = create_agent(model, [looking], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    agent.invoke({"messages": [HumanMessage("Look at page_3.")]}, config)
    state = agent.invoke({"messages": [HumanMessage("Sure?")]}, config)
    (told,) = tool_messages(state)
    assert told.artifact["text"] == "INVOICE" and state["messages"][-1].text == "Yes."
    assert json.loads(json.dumps(told.artifact)) == told.artifact


def test_a_tool_node_gives_it_the_conversation_too(looking):
    called = AIMessage(
        "",
        tool_calls=[
            {"name": "ask_image", "args": {"question": SQUARE, "image": "image_1"}, "id": "1"}
        ],
    )
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([looking]))
    graph.add_edge(START, "tools")
    shown = HumanMessage([block("shapes.png"), "Look."])
    state = graph.compile().invoke({"messages": [shown, called]})
    assert tool_messages(state)[0].content == '"blue"'


def test_traces_see_the_question_and_not_the_conversation(looking):
    started = []

    class Tracer(BaseCallbackHandler):
        def on_tool_start(self, serialized, input_str, *, inputs=None, **kwargs):
            started.append((input_str, inputs))

    model, _ = brain(calls("image_1"), "It is blue.")
    asked = {"messages": [HumanMessage([block("shapes.png"), SQUARE])]}
    create_agent(model, [looking]).invoke(asked, {"callbacks": [Tracer()]})
    ((text, inputs),) = started
    assert inputs == {"question": SQUARE, "image": "image_1"} and text == str(inputs)


def test_a_tool_is_copied_and_pickled_by_its_settings(tmp_path):
    tool_ = ImageQuestionTool(model="demo", attachments={"plan": PNG}, roots=[tmp_path])
    again = pickle.loads(pickle.dumps(tool_))
    assert again.attachments == tool_.attachments and again.roots == tool_.roots
    assert again.model_copy(deep=True).description == tool_.description
    assert "\\x89PNG" not in repr(tool_)


def test_name_and_description_can_be_given():
    tool_ = ImageQuestionTool(model="demo", name="look", description="Looks.")
    assert tool_.name == "look" and tool_.tool_call_schema.model_json_schema()["description"] == (
        "Looks."
    )


def test_names_of_pictures_are_those_that_the_tool_knows(looking):
    pdf = {"type": "file", "path": f"{DATA}/pages.pdf", "mime_type": "application/pdf"}
    result = {"type": "tool_result", "tool_use_id": "0", "content": [block("shapes.png")]}
    history = [
        HumanMessage([block("heart.png"), "Look.", pdf]),
        HumanMessage("No image."),
        HumanMessage([result, block("invoice.png")]),
    ]
    named = name_images(history)
    text = {"type": "text"}
    assert named[0].content == [
        text | {"text": "[image_1]"},
        "Look.",
        text | {"text": "[document_1]"},
    ]
    assert named[1] is history[1]
    assert named[2].content == [
        result | {"content": [text | {"text": "[image_2]"}]},
        text | {"text": "[image_3]"},
    ]
    assert history[0].content[0] == block("heart.png")  # nothing was changed
    kept = name_images(history, keep=True)
    assert kept[0].content[:2] == [text | {"text": "[image_1]"}, block("heart.png")]
    told = invoke(looking, "image_3", {"messages": history}, "What is the title?")
    assert told.content == '"INVOICE"'


# The bundled model as the brain: it is asked in the words that it knows.


@pytest.mark.parametrize(
    ("question", "image", "answer"),
    [
        ("What is the title? The picture is page_3.", "page_3", "INVOICE"),
        ("What is the total? The picture is page_3.", "page_3", "320"),
    ],
)
async def test_the_bundled_model_asks_about_an_attachment(looking, demo, question, image, answer):
    agent = create_agent(demo, [looking])
    asked = {"messages": [HumanMessage(question)]}
    for state in (agent.invoke(asked), await agent.ainvoke(asked)):
        _, call, told, last = state["messages"]
        assert call.tool_calls[0]["args"]["image"] == image
        assert told.content == f'"{answer}"' and answer in last.text


@pytest.mark.parametrize(
    ("file", "shape", "colour"),
    [
        ("shapes.png", "circle", "red"),
        ("heart.png", "heart", "red"),
        ("shapes.png", "square", "blue"),
    ],
)
def test_the_bundled_model_asks_about_a_picture_that_it_is_only_told_the_name_of(
    looking, demo, file, shape, colour
):
    @wrap_model_call
    def by_name(request, handler):
        return handler(request.override(messages=name_images(request.messages)))

    agent = create_agent(demo, [looking], middleware=[by_name])
    question = f"What colour is the {shape}? The picture is image_1."
    state = agent.invoke({"messages": [HumanMessage([block(file), question])]})
    _, call, told, last = state["messages"]
    assert call.tool_calls[0]["args"]["image"] == "image_1"
    assert told.content == f'"{colour}"' and colour in last.text
