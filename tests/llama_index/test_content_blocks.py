"""Every carrier reaches the backend as the same pixels, in its place, and nothing is dropped."""

import base64
import io

import numpy as np
import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    CacheControl,
    CachePoint,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    VideoBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    NodeWithScore,
    TextNode,
)
from PIL import Image as PILImage

from llavakit.errors import (
    ImageDecodeError,
    SourceNotAllowedError,
    SourceNotFoundError,
    UnsupportedContentError,
)
from llavakit.images import open_picture
from llavakit.llama_index.content_blocks import flattened, read_block, to_image_block
from llavakit.sources import SourcePolicy
from llavakit.values import Image, Text
from tests.llama_index.conformance import CARRIERS


def opened(part, policy=None):
    return open_picture(part.source, policy or SourcePolicy(), from_url_field=part.from_url_field)


def parts_seen(fake):
    return fake.requests[-1].messages[-1].content


@pytest.mark.parametrize("name", list(CARRIERS))
def test_every_carrier_gives_the_same_pixels(name, case, digest, llm, fake):
    llm.chat([CARRIERS[name](case, "What is it?")])
    images = [part for part in parts_seen(fake) if isinstance(part, Image)]
    texts = "".join(part.text for part in parts_seen(fake) if isinstance(part, Text))
    assert [opened(image).digest for image in images] == [digest]
    assert "What is it?" in texts


def test_the_order_of_text_and_pictures_is_kept(case, square, llm, fake):
    blocks = [
        TextBlock(text="first"),
        ImageBlock(image=case.png),
        TextBlock(text="second"),
        CitableBlock(
            title="T", source="S", content=[TextBlock(text="in"), ImageBlock(path=square.path)]
        ),
        DocumentBlock(data=case.png),
        TextBlock(text="last"),
    ]
    llm.chat([ChatMessage(role="user", blocks=blocks)])
    told = [
        part.text if isinstance(part, Text) else opened(part).digest for part in parts_seen(fake)
    ]
    red, blue = open_picture(case.png).digest, open_picture(square.png).digest
    assert told == ["first", red, "second", "T (S):\n", "in", blue, red, "last"]


def test_neighbouring_texts_are_joined_as_the_framework_joins_them(llm, fake):
    message = ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")])
    llm.chat([message])
    assert "".join(part.text for part in parts_seen(fake)) == message.content == "a\nb"


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (AudioBlock(audio=b"RIFF0000WAVE"), "audio"),
        (VideoBlock(), "no source"),
        (ImageBlock(), "no source"),
        (DocumentBlock(), "no source"),
        (DocumentBlock(data=b"plain", document_mimetype="text/plain"), "TextBlock"),
    ],
)
def test_what_llava_cannot_take_is_refused(block, told, llm, fake):
    with pytest.raises(UnsupportedContentError, match=told):
        llm.chat([ChatMessage(role="user", blocks=[block, TextBlock(text="What is it?")])])
    assert fake.requests == []


class HologramBlock(BaseContentBlock):
    """A kind of block that a later version of the framework, or somebody else, may bring."""

    block_type: str = "hologram"

    @property
    def text(self) -> str:
        return "hologram"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_block_that_nobody_knows_is_refused_by_its_name(role, llm, fake):
    message = ChatMessage(role=role, blocks=[TextBlock(text="before"), TextBlock(text="behind")])
    message.blocks.insert(1, HologramBlock())
    with pytest.raises(UnsupportedContentError, match="'HologramBlock': its type is unknown"):
        llm.chat([message, ChatMessage(role="user", content="What is it?")])
    assert fake.requests == []


def test_a_block_that_nobody_knows_is_refused_inside_another_one(llm, fake):
    outer = CitableBlock(title="T", source="S", content=[TextBlock(text="in")])
    outer.content.append(HologramBlock())
    with pytest.raises(UnsupportedContentError, match="'HologramBlock': its type is unknown"):
        llm.chat([ChatMessage(role="user", blocks=[outer, TextBlock(text="What is it?")])])
    assert fake.requests == []


def test_thoughts_and_cache_marks_are_no_part_of_the_dialogue(llm, fake):
    blocks = [
        ThinkingBlock(content="hm"),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        TextBlock(text="red"),
    ]
    llm.chat(
        [ChatMessage(role="assistant", blocks=blocks), ChatMessage(role="user", content="Sure?")]
    )
    assert fake.requests[-1].messages[0].content == (Text("red"),)


def test_bytes_that_were_set_later_are_taken_as_they_are(case, digest, llm, fake):
    block = ImageBlock(image=b"x")
    block.image = case.png  # not base64: nothing validates an assignment
    llm.chat([ChatMessage(role="user", blocks=[block])])
    assert opened(parts_seen(fake)[0]).digest == digest


def test_data_that_are_no_picture_are_an_error(demo_backend):
    from llavakit.llama_index import LLaVA

    llm = LLaVA(backend=demo_backend, model="demo")
    with pytest.raises(ImageDecodeError):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"no picture at all")])])


def test_a_url_field_names_no_file(case, demo_backend):
    from llavakit.llama_index import LLaVA

    llm = LLaVA(backend=demo_backend, model="demo")
    with pytest.raises(SourceNotAllowedError):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(url=case.path.as_uri())])])


def test_a_path_outside_the_roots_is_refused(case, tmp_path, demo_backend):
    from llavakit.llama_index import LLaVA

    fenced = tmp_path / "fenced"
    fenced.mkdir()
    llm = LLaVA(model="demo", source_policy=SourcePolicy(roots=(fenced,)))
    with pytest.raises(SourceNotAllowedError):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(path=case.path)])])


@pytest.mark.parametrize(
    "make",
    [
        lambda c: ImageNode(image=c.b64),
        lambda c: ImageNode(image=base64.encodebytes(c.png).decode()),
        lambda c: ImageNode(image=c.uri),
        lambda c: ImageNode(image_path=str(c.path)),
        lambda c: ImageNode(image_url=c.uri),
        lambda c: ImageNode(metadata={"file_path": str(c.path)}),
        lambda c: NodeWithScore(node=ImageNode(image=c.b64), score=0.5),
        lambda c: ImageDocument(image=c.b64),
        lambda c: ImageDocument(image_path=str(c.path)),
        lambda c: Document(image_resource=MediaResource(data=c.png)),
        lambda c: Document(image_resource=MediaResource(path=c.path)),
        lambda c: Document(image_resource=MediaResource(url=c.uri)),
        lambda c: ImageBlock(image=c.png),
        lambda c: c.png,
        lambda c: c.path,
        lambda c: str(c.path),
        lambda c: c.uri,
        lambda c: io.BytesIO(c.png),
        lambda c: PILImage.open(c.path),
        lambda c: np.asarray(PILImage.open(c.path)),
        lambda c: Image(c.png),
    ],
)
def test_an_image_block_is_made_of_anything(make, case, digest):
    (piece,) = read_block(to_image_block(make(case)))
    assert opened(piece).digest == digest


def test_a_node_without_a_picture_is_refused():
    with pytest.raises(UnsupportedContentError, match="no image"):
        to_image_block(TextNode(text="words"))


def test_a_missing_file_is_found_missing_by_the_policy_only(tmp_path, demo_backend):
    from llavakit.llama_index import LLaVAMultiModal

    llm = LLaVAMultiModal(backend=demo_backend, model="demo")
    with pytest.raises(SourceNotFoundError):
        llm.complete("What is it?", image_documents=[str(tmp_path / "none.png")])


def test_nested_lists_are_flattened_in_their_order():
    assert list(flattened(["a", ["b", ("c",)], None])) == ["a", "b", "c"]
    assert list(flattened("a")) == ["a"] and list(flattened(None)) == []


def test_legacy_images_that_were_set_later_are_not_dropped(case, square, llm, fake):
    message = ChatMessage(role="user", blocks=[ImageBlock(image=case.png), TextBlock(text="?")])
    message.additional_kwargs["images"] = [ImageDocument(image=square.b64)]
    llm.chat([message])
    images = [part for part in parts_seen(fake) if isinstance(part, Image)]
    assert [opened(one).size for one in images] == [(200, 200)] * 2
    assert opened(images[0]).digest != opened(images[1]).digest


def test_legacy_images_are_one_picture_however_often_the_framework_appends_them(case, llm, fake):
    message = CARRIERS["legacy images"](case, "What is it?")
    for _ in range(3):
        llm.chat([message])
        assert len(fake.requests[-1].messages[-1].images) == 1


def test_a_large_picture_is_not_encoded_anew(llm, fake):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(noise).save(buffer, "PNG", compress_level=0)
    llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=buffer.getvalue())])])
    assert parts_seen(fake)[0].source == buffer.getvalue()
    assert base64.b64encode(buffer.getvalue())[:20] not in repr(llm.to_payload()).encode()
