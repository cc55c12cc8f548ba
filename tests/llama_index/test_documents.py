"""PDFs in messages become images of their pages, in their place, and never too many."""

import io

import pytest
from llama_index.core.base.llms.types import CitableBlock, DocumentBlock, TextBlock
from llama_index.core.llms import ChatMessage
from PIL import Image as PILImage

from llavakit.documents import open_pages
from llavakit.errors import DocumentError, SourceNotAllowedError
from llavakit.llama_index import LLaVA
from llavakit.sources import SourcePolicy
from llavakit.values import Image
from tests.llama_index.conformance.methods import CHAT, called


@pytest.fixture(scope="module")
def pdf() -> bytes:
    """Three pages, each of its own colour."""
    first, *others = (PILImage.new("RGB", (60, 40), c) for c in ("red", "lime", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, "PDF", save_all=True, append_images=others)
    return buffer.getvalue()


def digests(fake):
    parts = fake.requests[-1].messages[-1].content
    return [part.source.digest for part in parts if isinstance(part, Image)]


def asked(*blocks):
    return [ChatMessage(role="user", blocks=list(blocks))]


@pytest.mark.parametrize("method", list(CHAT))
@pytest.mark.parametrize("carrier", ["bytes", "an open file", "a path", "nested"])
async def test_every_page_stands_in_the_documents_place(carrier, method, pdf, tmp_path, llm, fake):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf)
    block = {
        "bytes": lambda: DocumentBlock(data=pdf),
        "an open file": lambda: DocumentBlock(
            data=io.BytesIO(pdf), document_mimetype="application/pdf"
        ),
        "a path": lambda: DocumentBlock(path=str(path)),
        "nested": lambda: CitableBlock(title="a", source="b", content=[DocumentBlock(data=pdf)]),
    }[carrier]()
    messages = asked(TextBlock(text="before"), block, TextBlock(text="behind"))
    await called(method, llm, messages)
    assert digests(fake) == [page.digest for page in open_pages(pdf)]
    parts = fake.requests[-1].messages[-1].content
    assert (parts[0].text, parts[-1].text) == ("before", "behind")


def test_too_many_pages_are_refused_with_both_numbers(pdf, fake):
    llm = LLaVA(backend=fake, model="fake", max_pages=2)
    with pytest.raises(DocumentError, match="has 3 pages and a message takes 2; raise max_pages"):
        llm.chat(asked(DocumentBlock(data=pdf)))
    assert fake.requests == []


def test_the_policy_holds_for_documents_too(pdf, tmp_path, fake):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf)
    fake.source_policy = SourcePolicy(roots=(tmp_path / "elsewhere",))
    llm = LLaVA(backend=fake, model="fake")
    for block in (DocumentBlock(path=str(path)), DocumentBlock(url=path.as_uri())):
        with pytest.raises(SourceNotAllowedError):
            llm.chat(asked(block))


def test_a_damaged_one_is_refused(llm, fake):
    with pytest.raises(DocumentError):
        llm.chat(asked(DocumentBlock(data=b"%PDF-1.7 and nothing")))
    assert fake.requests == []


def test_a_document_counts_as_its_pages(pdf, llm):
    asked_for = asked(DocumentBlock(data=pdf))
    usage = llm.chat(asked_for).raw["usage"]
    assert llm.count_tokens(asked_for) == usage["prompt_tokens"]
