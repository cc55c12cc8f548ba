"""What a retriever finds (``NodeWithScore``) is taken wherever a node is, under the same fence."""

from pathlib import Path

import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    MediaResource,
    NodeWithScore,
    TextNode,
)

from llavakit.errors import LlavaKitError, SourceNotAllowedError, UnsupportedContentError
from llavakit.images import open_picture
from llavakit.llama_index import (
    ImageResolver,
    LLaVA,
    LLaVAMultiModal,
    PageImageReader,
    PageSynthesizer,
    resolve_node,
    to_image_block,
)
from llavakit.llama_index.content_blocks import source_of
from llavakit.llama_index.pages import node_label, reference_of
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.llama_index.paging import WORDS, write


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write(tmp_path / "report.pdf", *WORDS)


@pytest.fixture
def page(report):
    return PageImageReader(page_seconds=None).load_data(report)[0]


@pytest.fixture
def nodes(case, page):
    return {
        "a picture by its path": ImageNode(image_path=str(case.path)),
        "a picture inside": ImageNode(image=case.b64),
        "a picture by its metadata": ImageNode(metadata={"file_path": str(case.path)}),
        "a document": Document(image_resource=MediaResource(path=case.path)),
        "a page": page,
        "a page as stores give it back": ImageNode.from_json(page.to_json()),
        "a piece of a page's text": TextNode(text="alpha", metadata=page.metadata),
        "a text": TextNode(text="alpha"),
    }


NAMES = [
    *("a picture by its path", "a picture inside", "a picture by its metadata", "a document"),
    *("a page", "a page as stores give it back", "a piece of a page's text", "a text"),
]


def seen(node) -> str | None:
    source = source_of(node)
    return None if source is None else open_picture(source.source).digest


def tried(call, *arguments):
    try:
        return call(*arguments)
    except LlavaKitError as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", NAMES)
def test_a_found_node_is_resolved_as_the_node_is_and_keeps_its_score(nodes, name):
    node = nodes[name]
    found = NodeWithScore(node=node, score=0.25)
    resolved = resolve_node(found)
    assert isinstance(resolved, NodeWithScore) and resolved.score == 0.25
    assert seen(resolved) == seen(resolved.node) == seen(resolve_node(node))
    assert type(resolved.node) is type(resolve_node(node)) and found.node is node


@pytest.mark.parametrize("name", NAMES)
def test_the_fence_holds_for_both_alike(nodes, name, tmp_path):
    node = nodes[name]
    fence = SourcePolicy(roots=(tmp_path / "elsewhere",), allow_urls=False)
    plain = tried(resolve_node, node, fence)
    found = tried(resolve_node, NodeWithScore(node=node, score=1.0), fence)
    if isinstance(plain, tuple):
        assert found == plain and plain[0] is SourceNotAllowedError
    else:
        assert found.node == plain


@pytest.mark.parametrize("name", NAMES)
def test_a_found_node_is_the_same_image_block(nodes, name):
    plain = tried(to_image_block, nodes[name])
    assert tried(to_image_block, NodeWithScore(node=nodes[name])) == plain


def test_a_page_that_has_to_be_drawn_is_no_image_block_and_never_its_whole_file(page):
    for one in (page, NodeWithScore(node=page)):
        with pytest.raises(UnsupportedContentError, match=r"page 1 of report\.pdf .* resolve_node"):
            to_image_block(one)


def test_pages_are_known_from_what_was_found(page):
    found = NodeWithScore(node=page, score=0.5)
    assert reference_of(found) == reference_of(page) and node_label(found) == node_label(page)


def test_a_store_may_be_named_by_its_folder(report, tmp_path):
    reader = PageImageReader(page_seconds=None, store=tmp_path / "pictures")
    page = reader.load_data(report)[0]
    report.unlink()
    page.metadata["image_path"] = ""
    for store in (tmp_path / "pictures", str(tmp_path / "pictures"), reader.store):
        assert seen(resolve_node(NodeWithScore(node=page), store=store)) == page.metadata["sha256"]


async def test_a_resolver_takes_lists_of_both(nodes):
    kept = [nodes["a picture by its path"], NodeWithScore(node=nodes["a page"], score=0.5)]
    resolver = ImageResolver(page_seconds=None)
    for resolved in (resolver.postprocess_nodes(kept), await resolver.apostprocess_nodes(kept)):
        assert [one.score for one in resolved] == [None, 0.5]
        assert [seen(one) for one in resolved] == [seen(resolve_node(one)) for one in kept]


async def test_a_synthesizer_takes_lists_of_both(nodes):
    kept = [nodes["a page"], NodeWithScore(node=nodes["a text"], score=0.5)]
    synthesizer = PageSynthesizer(LLaVA(backend=FakeBackend(["yes", "no"]), model="fake"))
    first = synthesizer.synthesize("What?", kept)
    later = await synthesizer.asynthesize("What?", kept)
    assert (str(first), str(later)) == ("yes", "no")
    for response in (first, later):
        assert [one.score for one in response.source_nodes] == [None, 0.5]


def test_found_pictures_are_image_documents(nodes, digest):
    backend = FakeBackend(["red"])
    found = [NodeWithScore(node=nodes["a picture by its path"], score=1.0)]
    LLaVAMultiModal(backend=backend, model="fake").complete("What?", image_documents=found)
    picture, _ = backend.requests[0].messages[0].content
    assert open_picture(picture.source).digest == digest
