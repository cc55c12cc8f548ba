"""The tools in the frameworks' own agents, by the frameworks' own MCP clients."""

import asyncio
import gc

import pytest

from llavakit.backend import Backend
from llavakit.mcp import MCPSettings
from tests.mcp.connections import DATA, serving

pytestmark = [
    pytest.mark.enable_socket,
    # LlamaIndex looks at deprecated fields of pydantic, and its MCP client closes no connection.
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUESTION = "What is the title? The picture is page_3."


@pytest.fixture
def settings(demo_backend: Backend) -> MCPSettings:
    attachments = {"page_3": DATA / "invoice.png", "scan": DATA / "pages.pdf"}
    return MCPSettings(backend=demo_backend, attachments=attachments)


async def ask_in_langchain(url: str, backend: Backend) -> None:
    from langchain.agents import create_agent
    from langchain_mcp_adapters.client import MultiServerMCPClient

    from llavakit.langchain import ChatLLaVA

    client = MultiServerMCPClient({"llavakit": {"transport": "streamable_http", "url": url}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    brain = ChatLLaVA(backend=backend, temperature=0, max_tokens=60)
    agent = create_agent(brain, [tools["ask_image"]])
    run = await agent.ainvoke({"messages": [("user", QUESTION)]})
    asked, told, answer = run["messages"][1:]
    (call,) = asked.tool_calls
    assert call["args"]["image"] == "page_3" and told.status == "success"
    assert '"INVOICE"' in told.text and "INVOICE" in answer.text
    assert told.artifact["structured_content"]["citations"][0]["image"] == "page_3"

    call = {"name": "read_page", "args": {"image": "/etc/passwd"}, "id": "1", "type": "tool_call"}
    refused = await tools["read_page"].ainvoke(call)
    assert refused.status == "error" and "There is no image" in refused.text


async def ask_in_llama_index(url: str, backend: Backend) -> None:
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    from llavakit.llama_index import LLaVA

    spec = McpToolSpec(client=BasicMCPClient(url))
    tools = {tool.metadata.name: tool for tool in await spec.to_tool_list_async()}
    brain = LLaVA(backend=backend, temperature=0, max_tokens=60)
    agent = FunctionAgent(tools=[tools["ask_image"]], llm=brain)
    answer = await agent.run(QUESTION)
    (call,) = answer.tool_calls
    # Its text holds the structured result, too, which is too much for the bundled model.
    assert call.tool_kwargs["image"] == "page_3" and '"INVOICE"' in str(call.tool_output)

    # Arguments that are left out, lists and objects go through its models, too.
    read = await tools["read_page"].acall(image="scan#page=2")
    assert "INVOICE" in read.content
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    found = await tools["extract"].acall(image="scan#page=3", json_schema=schema)
    assert "RECEIPT" in found.content
    names = ["page_3", "scan#page=1"]
    compared = await tools["compare_images"].acall(question="What is the title?", images=names)
    assert all(name in str(compared.raw_output) for name in names)


def test_an_agent_of_langchain_asks_by_the_tools(settings, demo_backend):
    pytest.importorskip("langchain_mcp_adapters")
    with serving(settings) as url:
        asyncio.run(ask_in_langchain(url, demo_backend))
    gc.collect()


def test_an_agent_of_llama_index_asks_by_the_tools(settings, demo_backend):
    pytest.importorskip("llama_index.tools.mcp")
    with serving(settings) as url:
        asyncio.run(ask_in_llama_index(url, demo_backend))
    gc.collect()
