"""The examples of the picture tools run as they stand, and print what is true."""

from tests.test_examples import run


def test_the_langchain_agent_asks_about_a_message_an_attachment_and_files():
    printed = run("examples/langchain_image_tool.py").splitlines()
    assert (
        "   ai: ask_image({'question': 'What color is the square?', 'image': 'image_1'})" in printed
    )
    assert ' tool: "blue"' in printed and "   ai: The result is blue" in printed
    assert ' tool: "INVOICE"' in printed and "   ai: The result is INVOICE" in printed
    assert 'heart.png: "a red heart"' in printed
    assert 'pages.pdf#page=2: "a page with the title INVOICE"' in printed
    refused = [line for line in printed if "may not be opened" in line]
    assert [line.partition(":")[0] for line in refused] == ["../../pyproject.toml", "http"]


def test_the_llama_index_agent_asks_about_attachments_and_files():
    printed = run("examples/llama_index_image_tool.py").splitlines()
    assert "answer: The result is INVOICE" in printed and "answer: The result is blue" in printed
    assert any(line.endswith("'image': 'page_3'}) = \"INVOICE\"") for line in printed)
    assert 'heart.png: "a red heart"' in printed
    assert any(line.startswith("../../pyproject.toml: Error: ") for line in printed)
