"""Memories that count what the model counts, images included."""

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine

from llavakit.errors import ParameterError
from llavakit.llama_index import LLaVA
from llavakit.llama_index.memory import LLaVAChatMemoryBuffer


@pytest.fixture
def llm(demo_backend):
    return LLaVA(backend=demo_backend, temperature=0, max_tokens=8)


def looked(question="What colour is the heart?"):
    blocks = [ImageBlock(path="examples/data/heart.png"), TextBlock(text=question)]
    return ChatMessage(role=MessageRole.USER, blocks=blocks)


SAID = [looked(), ChatMessage(role=MessageRole.ASSISTANT, content="red")]
AGAIN = ChatMessage(role=MessageRole.USER, content="And the circle?")


def test_a_buffer_keeps_what_fits_by_the_models_own_count(llm):
    history = [*SAID, AGAIN]
    tokens = llm.count_tokens(history)
    fits = llm.chat_memory_buffer(token_limit=tokens, chat_history=list(history))
    assert fits.get() == history
    short = llm.chat_memory_buffer(token_limit=tokens - 1, chat_history=list(history))
    assert short.get() == [AGAIN]


def test_its_limit_leaves_room_for_the_answer(llm):
    assert llm.chat_memory_buffer().token_limit == int(0.75 * llm.metadata.context_window)


def test_it_is_read_back_with_a_model_to_count_with(llm):
    messages = {"chat_history": [message.model_dump() for message in (*SAID, AGAIN)]}
    data = {"token_limit": 3000, "chat_store": {"store": messages, "class_name": "SimpleChatStore"}}
    again = LLaVAChatMemoryBuffer.from_dict(dict(data), llm=llm)
    assert [m.content for m in again.get()] == [m.content for m in (*SAID, AGAIN)]
    with pytest.raises(ParameterError, match="no model to count with"):
        LLaVAChatMemoryBuffer.from_dict(dict(data)).get()


def test_a_chat_engine_goes_on_with_what_fits(llm):
    memory = llm.chat_memory_buffer(token_limit=120, chat_history=[looked("word " * 200), *SAID])
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    assert str(engine.chat("What color is the heart?"))


async def test_a_memory_moves_out_what_its_limit_does_not_hold(llm):
    one = llm.count_tokens([looked()])
    memory = llm.memory(token_limit=3 * one, token_flush_size=one, chat_history_token_ratio=0.9)
    for number in range(5):
        await memory.aput(looked(f"What colour is heart {number}?"))
    kept = await memory.aget()
    assert 1 <= len(kept) <= 2 and kept[-1].content == "What colour is heart 4?"
    assert memory._estimate_token_count(looked()) == one
    assert memory._estimate_token_count([TextBlock(text="hi")]) > 0
