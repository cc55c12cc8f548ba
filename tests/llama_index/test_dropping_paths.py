"""What ``docs/llama-index.md`` says of paths that drop images is so, and what to use instead.

None of this is llavakit's doing: each of these paths loses the image before any model sees
it. When a test here fails, the framework has become better, and the page is to be changed.
"""

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import Document, ImageNode, MediaResource, NodeWithScore
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llavakit.llama_index import LLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall
from tests.llama_index.pictures import ShapeEmbedding

pytestmark = [
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
    pytest.mark.filterwarnings("ignore:Call to deprecated"),
]


class Found(BaseRetriever):
    """Finds the one image there is."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def _retrieve(self, query_bundle):
        node = ImageNode(image_path=str(self.path), text="a circle")
        return [NodeWithScore(node=node, score=1.0)]


def pictures(fake):
    return sum(len(message.images) for request in fake.requests for message in request.messages)


@pytest.fixture
def retriever(case):
    return Found(case.path)


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ({"multimodal": True}, 1),
        ({"multimodal": True, "response_mode": "refine"}, 1),
        ({"multimodal": True, "response_mode": "tree_summarize"}, 1),
        ({}, 0),
        ({"multimodal": False}, 0),
        ({"multimodal": True, "response_mode": "generation"}, 0),
    ],
)
def test_query_engines(arguments, seen, retriever, llm, fake):
    RetrieverQueryEngine.from_args(retriever, llm=llm, **arguments).query("What colour?")
    assert (pictures(fake) > 0) == bool(seen)


@pytest.mark.parametrize("mode", ["context", "condense_plus_context", "simple"])
def test_chat_engines_of_an_index_that_is_not_multi_modal(mode, case, llm, fake):
    index = VectorStoreIndex(
        nodes=[ImageNode(image_path=str(case.path), text="a circle")], embed_model=ShapeEmbedding()
    )
    index.as_chat_engine(chat_mode=mode, llm=llm).chat("What colour is the circle?")
    assert fake.requests and pictures(fake) == 0


def test_a_simple_chat_engine_takes_pictures_in_its_history_only(case, llm, fake):
    shown = ChatMessage(
        role="user", blocks=[ImageBlock(path=case.path), TextBlock(text="What is this?")]
    )
    engine = SimpleChatEngine.from_defaults(llm=llm)
    try:
        engine.chat(shown)
    except Exception as refused:
        assert fake.requests == [], refused
    assert pictures(fake) == 0
    engine.reset()
    engine.chat("And now?", chat_history=[shown])
    assert pictures(fake) == 1


async def test_a_tools_picture_reaches_a_function_agent_and_no_react_agent(case):
    def take_picture() -> ImageBlock:
        """Take an image."""
        return ImageBlock(path=case.path)

    tools = [FunctionTool.from_defaults(take_picture)]
    react = FakeBackend(
        ["Thought: I look.\nAction: take_picture\nAction Input: {}", "Thought: so.\nAnswer: red"]
    )
    formatter = ReActChatFormatter()
    await ReActAgent(tools=tools, llm=LLaVA(backend=react), formatter=formatter).run("Look.")
    assert len(react.requests) == 2 and pictures(react) == 0
    calling = FakeBackend(
        [Completion("", (ToolCall("1", "take_picture", {}),), "tool_calls"), "red"]
    )
    await FunctionAgent(tools=tools, llm=LLaVA(backend=calling)).run("Look.")
    assert pictures(calling) == 1


class Seen(BaseModel):
    colour: str


async def test_an_agents_output_class_is_filled_from_words_and_a_function_sees_the_picture(case):
    shown = ChatMessage(
        role="user", blocks=[ImageBlock(path=case.path), TextBlock(text="What colour is it?")]
    )
    dropping = FakeBackend(["red", '{"colour": "red"}'])
    agent = FunctionAgent(tools=[], llm=LLaVA(backend=dropping), output_cls=Seen)
    await agent.run(shown)
    assert [len(one.messages[-1].images) for one in dropping.requests] == [1, 0]
    seeing = FakeBackend(["red", '{"colour": "red"}'])
    llm = LLaVA(backend=seeing)

    async def fill(messages: list[ChatMessage]) -> dict:
        return (await llm.as_structured_llm(Seen).achat(messages)).raw.model_dump()

    answer = await FunctionAgent(tools=[], llm=llm, structured_output_fn=fill).run(shown)
    assert answer.structured_response == {"colour": "red"}
    assert pictures(seeing) == 2 and seeing.requests[-1].messages[-1].role == "assistant"


def test_an_ingestion_pipeline_loses_a_documents_picture(case):
    document = Document(text="a circle", image_resource=MediaResource(path=case.path))
    (node,) = IngestionPipeline(transformations=[SentenceSplitter()]).run(documents=[document])
    assert getattr(node, "image_resource", None) is None


def test_an_index_forgets_a_picture_without_words(case):
    silent = ImageNode(image_path=str(case.path))
    index = VectorStoreIndex(nodes=[silent], embed_model=ShapeEmbedding())
    assert index.as_retriever().retrieve("circle") == []
    named = ImageNode(image_path=str(case.path), metadata={"file_name": "circle.png"})
    index = VectorStoreIndex(nodes=[named], embed_model=ShapeEmbedding())
    assert len(index.as_retriever().retrieve("circle")) == 1


def test_a_vector_store_that_keeps_no_nodes_keeps_the_path_and_loses_the_bytes(case, square):
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

    by_path = ImageNode(image_path=str(case.path), metadata={"file_name": "a.png"})
    back = metadata_dict_to_node(node_to_metadata_dict(by_path, remove_text=True))
    assert back.image_path == str(case.path)
    by_bytes = Document(image_resource=MediaResource(data=square.png))
    back = metadata_dict_to_node(node_to_metadata_dict(by_bytes, remove_text=True))
    assert getattr(back, "image_resource", None) is None
