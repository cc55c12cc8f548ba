"""Every way in which a message of LlamaIndex carries an image."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import (
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import Document, ImageDocument, ImageNode, MediaResource, MetadataMode

from tests.llama_index.pictures import Case

Carrier = Callable[[Case, str], ChatMessage]
"""A user's message of the image and a question, made anew each time."""


def blocks(make: Callable[[Case], list[Any]]) -> Carrier:
    """Blocks of the image, then the question."""
    return lambda case, question: ChatMessage(
        role="user", blocks=[*make(case), TextBlock(text=question)]
    )


def legacy(make: Callable[[Case], ImageDocument]) -> Carrier:
    return lambda case, question: ChatMessage(
        role="user", content=question, additional_kwargs={"images": [make(case)]}
    )


def citation(case: Case) -> CitationBlock:
    return CitationBlock(
        cited_content=ImageBlock(image=case.png),
        source="book",
        title="Figure 1",
        additional_location_info={},
    )


def template(case: Case, question: str) -> ChatMessage:
    from llama_index.core.prompts import RichPromptTemplate

    prompt = RichPromptTemplate('{% chat role="user" %}{{img|image}}{{q}}{% endchat %}')
    return prompt.format_messages(img=case.uri, q=question)[0]


CARRIERS: dict[str, Carrier] = {
    "bytes": blocks(lambda c: [ImageBlock(image=c.png)]),
    "base64 bytes": blocks(lambda c: [ImageBlock(image=c.b64.encode())]),
    "an open file": blocks(lambda c: [ImageBlock(image=io.BytesIO(c.png))]),
    "a path": blocks(lambda c: [ImageBlock(path=c.path)]),
    "a data URL": blocks(lambda c: [ImageBlock(url=c.uri)]),
    "a data URL of the wrong type": blocks(
        lambda c: [ImageBlock(url=c.uri.replace("image/png", "image/jpeg"))]
    ),
    "a wrong mimetype": blocks(lambda c: [ImageBlock(image=c.png, image_mimetype="image/gif")]),
    "a node of base64": blocks(lambda c: ImageNode(image=c.b64).get_content_blocks()),
    "a node of a path": blocks(lambda c: ImageNode(image_path=str(c.path)).get_content_blocks()),
    "a document's resource": blocks(
        lambda c: Document(image_resource=MediaResource(data=c.png)).get_content_blocks()
    ),
    "a document's resource by path": blocks(
        lambda c: Document(image_resource=MediaResource(path=c.path)).get_content_blocks(
            metadata_mode=MetadataMode.NONE
        )
    ),
    "an image document": blocks(lambda c: ImageDocument(image=c.b64).get_content_blocks()),
    "a document block": blocks(lambda c: [DocumentBlock(data=c.png)]),
    "a document block's open file": blocks(lambda c: [DocumentBlock(data=io.BytesIO(c.png))]),
    "nested in a citable block": blocks(
        lambda c: [CitableBlock(title="Figure 1", source="book", content=[ImageBlock(image=c.png)])]
    ),
    "nested in a citation": blocks(lambda c: [citation(c)]),
    "legacy images": legacy(lambda c: ImageDocument(image=c.b64)),
    "legacy images by path": legacy(lambda c: ImageDocument(image_path=str(c.path))),
    "behind the question": lambda c, q: ChatMessage(
        role="user", blocks=[TextBlock(text=q), ImageBlock(image=c.png)]
    ),
    "a rich template": template,
    "after a round trip": lambda c, q: ChatMessage.model_validate(
        blocks(lambda c: [ImageBlock(image=c.png)])(c, q).model_dump()
    ),
}
