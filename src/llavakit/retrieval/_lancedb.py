"""LanceDB, or one sentence about what is missing."""

from __future__ import annotations

from llavakit.errors import MissingDependencyError

try:
    import lancedb
    import pyarrow
    from lancedb.index import FTS
    from lancedb.query import MatchQuery
except ImportError as error:
    raise MissingDependencyError(
        'An index in LanceDB needs its package; run: pip install "llavakit[retrieval]"'
    ) from error

__all__ = ["FTS", "MatchQuery", "lancedb", "pyarrow"]
