"""Counting accepts what answering accepts, and counts the same."""

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ContextEditingMiddleware
from langchain_core.messages import HumanMessage, SystemMessage, trim_messages

from llavakit import SourcePolicy
from llavakit.errors import SourceNotAllowedError
from llavakit.langchain import ChatLLaVA
from tests.loopback import reply

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def url(server, png):
    server.answer = reply(png)
    return server.url()


@pytest.fixture
def model():
    policy = SourcePolicy(allow_private_hosts=True)
    return ChatLLaVA(model="demo", temperature=0, max_tokens=4, source_policy=policy)


def notations(url):
    return {
        "v1": {"type": "image", "url": url},
        "OpenAI": {"type": "image_url", "image_url": {"url": url}},
        "Anthropic": {"type": "image", "source": {"type": "url", "url": url}},
        "v0": {"type": "image", "source_type": "url", "url": url},
    }


@pytest.mark.parametrize("notation", notations(""))
def test_an_image_at_a_url_counts_as_it_is_answered(model, url, notation):
    asked = [HumanMessage([notations(url)[notation], {"type": "text", "text": "What is it?"}])]
    answer = model.invoke(asked)
    assert model.get_num_tokens_from_messages(asked) == answer.usage_metadata["input_tokens"]


def test_conversations_with_urls_are_trimmed(model, url):
    old = HumanMessage([{"type": "image", "url": url}, {"type": "text", "text": "What is it?"}])
    talk = [SystemMessage("Be brief."), old, HumanMessage("And now?")]
    count = model.get_num_tokens_from_messages
    assert trim_messages(talk, max_tokens=count(talk), token_counter=model) == talk
    kept = trim_messages(talk, max_tokens=count(talk) - 1, token_counter=model, include_system=True)
    assert kept == [talk[0], talk[2]]


def test_an_agent_edits_its_context_with_urls_in_it(model, url):
    middleware = ContextEditingMiddleware(token_count_method="model")
    asked = HumanMessage([{"type": "image", "url": url}, {"type": "text", "text": "What is it?"}])
    agent = create_agent(model, [], middleware=[middleware])
    assert agent.invoke({"messages": [asked]})["messages"][-1].text


def test_a_pdf_at_a_url_is_counted_by_its_pages(model, server):
    from pathlib import Path

    server.answer = reply(Path("examples/data/pages.pdf").read_bytes())
    asked = [HumanMessage([{"type": "file", "url": server.url("/a.pdf")}, "What is it?"])]
    answer = model.invoke(asked)
    assert model.get_num_tokens_from_messages(asked) == answer.usage_metadata["input_tokens"]


def test_what_answering_refuses_is_not_fetched_for_counting(url, server):
    model = ChatLLaVA(model="demo")
    with pytest.raises(SourceNotAllowedError):
        model.get_num_tokens_from_messages([HumanMessage([{"type": "image", "url": url}])])
    assert server.connections == 0
