"""The examples of the image tools run as they stand, and print what is true."""

from tests.programs import printed


def test_the_langchain_agent_asks_about_a_message_an_attachment_and_files():
    told = printed("examples/langchain_image_tool.py").splitlines()
    assert "   ai: ask_image({'question': 'What color is the square?', 'image': 'image_1'})" in told
    assert ' tool: "blue"' in told and "   ai: The result is blue" in told
    assert ' tool: "INVOICE"' in told and "   ai: The result is INVOICE" in told
    assert 'heart.png: "a red heart"' in told
    assert 'pages.pdf#page=2: "a page with the title INVOICE"' in told
    refused = [line for line in told if "may not be opened" in line]
    assert [line.partition(":")[0] for line in refused] == ["../../pyproject.toml", "http"]


def test_the_llama_index_agent_asks_about_attachments_and_files():
    told = printed("examples/llama_index_image_tool.py").splitlines()
    assert "answer: The result is INVOICE" in told and "answer: The result is blue" in told
    assert any(line.endswith("'image': 'page_3'}) = \"INVOICE\"") for line in told)
    assert 'heart.png: "a red heart"' in told
    assert any(line.startswith("../../pyproject.toml: Error: ") for line in told)
