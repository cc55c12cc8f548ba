"""Questions over a folder of images: found by their captions, answered by looking at them."""

from __future__ import annotations

import re
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import ImageNode

from llavakit import SourcePolicy
from llavakit.llama_index import PAGES_TEMPLATE, ImageResolver, LLaVAMultiModal

DATA = Path(__file__).parent / "data"
NAMES = ("heart.png", "squares.png", "wide.webp", "invoice.png")
WORDS = ("heart", "square", "star", "ellipse", "invoice", "page", "circle", "triangle")


class WordEmbedding(BaseEmbedding):
    """A vector of which of a few words a text holds: enough here, and nothing to download."""

    def _get_text_embedding(self, text: str) -> list[float]:
        found = re.findall("[a-z]+", text.lower())
        return [0.01 + sum(word.startswith(known) for word in found) for known in WORDS]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


# Only this folder may be read, by the model and by what opens the images of nodes.
policy = SourcePolicy(roots=(DATA,), allow_urls=False)
llm = LLaVAMultiModal(model="demo", temperature=0, source_policy=policy)

nodes = []
for name in NAMES:
    caption = llm.complete("Describe the image.", image_documents=[DATA / name]).text
    print(f"{name}: {caption}")
    nodes.append(ImageNode(text=caption, image_path=str(DATA / name)))
index = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding())

# The framework would plan 2125 tokens for each image; this helper plans what they have.
synthesizer = get_response_synthesizer(
    llm=llm,
    multimodal=True,
    chat_content_qa_template=PAGES_TEMPLATE,  # the framework's own is long for a small model
    chat_prompt_helper=llm.chat_prompt_helper(),
)
engine = index.as_query_engine(
    llm=llm,
    similarity_top_k=1,
    response_synthesizer=synthesizer,
    node_postprocessors=[ImageResolver(policy=policy)],
)

for question in ("What colour is the heart?", "What is the title of the page?"):
    response = engine.query(question)
    (source,) = response.source_nodes
    print(f"{question} {response} ({Path(source.node.image_path).name})")
