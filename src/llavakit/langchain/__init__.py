"""LLaVA in LangChain: thin adapters, messages in and chunks out.

>>> from llavakit.langchain import ChatLLaVA
>>> model = ChatLLaVA(model="demo")

The model itself lives behind :class:`llavakit.Backend`; importing this package or making a
:class:`ChatLLaVA` imports no torch and loads no weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from llavakit._lazy import lazy_names
from llavakit.errors import MissingDependencyError

if find_spec("langchain_core") is None:
    raise MissingDependencyError(
        'LangChain is not installed; run: pip install "llavakit[langchain]"'
    )

from llavakit.langchain.chat_models import ChatLLaVA
from llavakit.langchain.conversation_images import name_images
from llavakit.langchain.image_tool import ImageQuestionTool
from llavakit.langchain.llms import LLaVALLM
from llavakit.langchain.page_chain import page_question_chain
from llavakit.langchain.page_loader import PageImageLoader
from llavakit.langchain.page_messages import apage_messages, page_messages
from llavakit.langchain.page_parser import PageImageParser
from llavakit.langchain.plain import plain_messages

if TYPE_CHECKING:
    from llavakit.langchain.page_embeddings import PageEmbeddings
    from llavakit.langchain.page_retriever import PageImageRetriever

_WITH_VECTORS = {"PageEmbeddings": "page_embeddings", "PageImageRetriever": "page_retriever"}
__getattr__ = lazy_names(
    __name__, _WITH_VECTORS, ["lancedb", "numpy"], what="An index of pages", extra="retrieval"
)

__all__ = [
    "ChatLLaVA",
    "ImageQuestionTool",
    "LLaVALLM",
    "PageEmbeddings",
    "PageImageLoader",
    "PageImageParser",
    "PageImageRetriever",
    "apage_messages",
    "name_images",
    "page_messages",
    "page_question_chain",
    "plain_messages",
]
