"""A tool call that a limit cut is never run by LlamaIndex, and is no text of the answer."""

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool

from llavakit.errors import LlavaKitError
from llavakit.llama_index import LLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, CutCall, ToolCall

pytestmark = [
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]
CUT = CutCall("pay", '{"amount": 345')


@pytest.fixture
def paid():
    return []


@pytest.fixture
def pay(paid):
    def pay(amount: int) -> str:
        """Pay an amount."""
        paid.append(amount)
        return "paid"

    return FunctionTool.from_defaults(pay)


@pytest.mark.parametrize("limit", [8, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_pays_what_was_said_or_says_that_it_was_cut(
    limit, streaming, pay, paid, demo_backend
):
    llm = LLaVA(backend=demo_backend, temperature=0, max_tokens=limit)
    agent = FunctionAgent(tools=[pay], llm=llm, streaming=streaming)
    try:
        await agent.run("Pay 3456.")
    except Exception as error:
        assert "was cut" in str(error) and "max_tokens" in str(error)
        assert paid == []
    assert set(paid) <= {3456}


def answers():
    whole = ToolCall("c1", "pay", {"amount": 12})
    return FakeBackend([Completion("Paying.", (whole,), "length", cut_calls=(CUT,))])


async def test_it_is_told_beside_the_message_and_is_no_part_of_it(pay):
    llm = LLaVA(backend=answers())
    whole = llm.chat_with_tools([pay], "q")
    *_, last = llm.stream_chat_with_tools([pay], "q")
    awaited = await llm.achat_with_tools([pay], "q")
    for response in (whole, last, awaited):
        assert response.message.content == "Paying." and "345" not in str(response.message)
        (cut,) = response.additional_kwargs["cut_tool_calls"]
        assert cut["name"] == "pay" and "max_tokens" in cut["error"]
        with pytest.raises(LlavaKitError, match="'pay' was cut"):
            llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)


def test_predict_and_call_runs_nothing_of_it(pay, paid):
    with pytest.raises(LlavaKitError, match="'pay' was cut"):
        LLaVA(backend=answers()).predict_and_call([pay], "q")
    assert paid == []


def test_no_streamed_response_holds_a_part_of_a_call(pay):
    calls = (ToolCall("c1", "pay", {"amount": 1}), ToolCall("c2", "pay", {"amount": 2}))
    llm = LLaVA(backend=FakeBackend([Completion("", calls)]))
    for response in llm.stream_chat_with_tools([pay], "q"):
        found = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        assert [one.tool_kwargs for one in found] in (
            [{"amount": 1}],
            [{"amount": 1}, {"amount": 2}],
        )
