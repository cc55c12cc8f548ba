"""LLaVA in LlamaIndex: thin adapters, messages in and responses out.

>>> from llavakit.llama_index import LLaVA
>>> llm = LLaVA(model="demo")

The model itself lives behind :class:`llavakit.Backend`; importing this package or making an
:class:`LLaVA` imports no torch and loads no weights. Which of the framework's paths keep
images, and which drop them, is documented in ``docs/llama-index.md``.
"""

from __future__ import annotations

from importlib.util import find_spec

from llavakit.errors import MissingDependencyError

# `llama_index` is a namespace package: it may be there without its core.
if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise MissingDependencyError(
        'LlamaIndex is not installed; run: pip install "llavakit[llama-index]"'
    )

from llavakit.llama_index.content_blocks import to_image_block
from llavakit.llama_index.engines import page_query_engine
from llavakit.llama_index.image_tool import ImageQuestionTool
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.multi_modal import LLaVAMultiModal
from llavakit.llama_index.nodes import ImageResolver, resolve_node
from llavakit.llama_index.page_embedding import PageEmbedding
from llavakit.llama_index.page_retriever import PageImageRetriever
from llavakit.llama_index.reader import PageImageReader
from llavakit.llama_index.synthesis import PAGES_TEMPLATE, PageSynthesizer

PictureResolver = ImageResolver
"""The name that it had at first."""

__all__ = [
    "PAGES_TEMPLATE",
    "ImageQuestionTool",
    "ImageResolver",
    "LLaVA",
    "LLaVAMultiModal",
    "PageEmbedding",
    "PageImageReader",
    "PageImageRetriever",
    "PageSynthesizer",
    "PictureResolver",
    "page_query_engine",
    "resolve_node",
    "to_image_block",
]
