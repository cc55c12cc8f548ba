"""Nodes' images are opened under our policy, before the framework opens them without one."""

import pytest
from llama_index.core.base.llms.generic_utils import image_node_to_image_block
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    NodeWithScore,
    TextNode,
)

from llavakit.errors import ImageTooLargeError, SourceNotAllowedError
from llavakit.images import open_picture
from llavakit.llama_index import ImageResolver, resolve_node
from llavakit.llama_index.content_blocks import source_of
from llavakit.sources import SourcePolicy
from tests.loopback import LOCAL, Server, reply

NODES = {
    "a node's path": lambda c: ImageNode(image_path=str(c.path), metadata={"page_label": "3"}),
    "a node's data URL": lambda c: ImageNode(image_url=c.uri),
    "a node's metadata": lambda c: ImageNode(metadata={"file_path": str(c.path)}),
    "an image document's path": lambda c: ImageDocument(image_path=str(c.path)),
    "a document's path": lambda c: Document(image_resource=MediaResource(path=c.path)),
    "a document's data URL": lambda c: Document(image_resource=MediaResource(url=c.uri)),
}


@pytest.mark.parametrize("name", list(NODES))
def test_the_bytes_are_inside_and_the_rest_is_as_it_was(name, case, digest):
    node = NODES[name](case)
    before = node.model_dump()
    resolved = resolve_node(node)
    assert open_picture(source_of(resolved).source).digest == digest
    assert resolved.metadata == node.metadata and resolved.node_id == node.node_id
    assert node.model_dump() == before and source_of(node).source != source_of(resolved).source
    assert resolve_node(resolved) is resolved


def test_the_framework_opens_nothing_any_more(case, monkeypatch):
    nodes = [resolve_node(make(case)) for make in NODES.values()]
    monkeypatch.setattr("pathlib.Path.read_bytes", None)
    for node in nodes:
        (*_, block) = node.get_content_blocks()
        assert block.resolve_image().read() == case.png
        if isinstance(node, ImageNode):
            assert image_node_to_image_block(node).resolve_image().read() == case.png


@pytest.mark.parametrize("name", [name for name in NODES if "URL" not in name])
def test_the_policy_is_obeyed(name, case, tmp_path):
    policy = SourcePolicy(roots=(tmp_path / "elsewhere",))
    with pytest.raises(SourceNotAllowedError):
        resolve_node(NODES[name](case), policy)
    with pytest.raises(ImageTooLargeError):
        resolve_node(NODES[name](case), SourcePolicy(max_bytes=10))


@pytest.mark.enable_socket
def test_a_private_address_is_refused_and_never_asked(server: Server):
    node = ImageNode(image_url=server.url())
    with pytest.raises(SourceNotAllowedError):
        resolve_node(node)
    assert server.requests == []


@pytest.mark.enable_socket
def test_a_picture_behind_a_url_is_fetched_once(server: Server, case, digest):
    server.answer = reply(case.png)
    (one,) = ImageResolver(policy=LOCAL).postprocess_nodes(
        [NodeWithScore(node=ImageNode(image_url=server.url()), score=0.5)]
    )
    (block,) = one.node.get_content_blocks()
    assert open_picture(block.resolve_image().read()).digest == digest
    assert one.score == 0.5 and len(server.requests) == 1


async def test_texts_pass_as_they_are():
    nodes = [NodeWithScore(node=TextNode(text="words"), score=1.0)]
    resolver = ImageResolver()
    assert resolver.postprocess_nodes(nodes)[0].node is nodes[0].node
    assert (await resolver.apostprocess_nodes(nodes))[0].node is nodes[0].node
