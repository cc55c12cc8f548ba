"""Find pages of documents by what they show, and answer from them.

>>> from llavakit.retrieval import PageIndex
>>> from llavakit.retrieval.embedder import load_embedder

No torch and no framework here: what embeds is an :class:`~llavakit.embeddings.Embedder`, and
:mod:`llavakit.langchain` and :mod:`llavakit.llama_index` build their retrievers upon the index.
"""

from llavakit.retrieval.fusion import fuse_ranks
from llavakit.retrieval.hits import Hit
from llavakit.retrieval.index import IndexChanges, PageIndex
from llavakit.retrieval.ledger import IndexFailure
from llavakit.retrieval.similarity import SimilarityMap
from llavakit.retrieval.updating import IndexProgress

__all__ = [
    "Hit",
    "IndexChanges",
    "IndexFailure",
    "IndexProgress",
    "PageIndex",
    "SimilarityMap",
    "fuse_ranks",
]
