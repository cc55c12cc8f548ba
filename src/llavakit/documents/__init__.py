"""Documents as images of their pages: PDF, TIFF, ordinary images, and folders of them.

Opening pages knows no model; reading them (:mod:`llavakit.documents.reading`) knows a
:class:`~llavakit.backend.Backend`. No framework and no torch here; :mod:`llavakit.langchain` and
:mod:`llavakit.llama_index` build their loaders and readers upon this room.
"""

from llavakit.documents.citations import PageCitation, boxes_of, cite, cite_answer
from llavakit.documents.confidence import Confidence
from llavakit.documents.context import PagesInContext, ask_about, fit_pages
from llavakit.documents.files import open_files
from llavakit.documents.folders import Document, Failure
from llavakit.documents.job import Job, Tally
from llavakit.documents.job_state import to_line
from llavakit.documents.jobs import run_job, stream_job
from llavakit.documents.message import message_pages
from llavakit.documents.pages import Page, count_pages, open_pages
from llavakit.documents.ranges import PageRange
from llavakit.documents.reading import (
    Reading,
    describe,
    extract,
    read_pages,
    transcribe,
)
from llavakit.documents.references import PageReference, reopen
from llavakit.documents.store import PageStore
from llavakit.documents.suffixes import LeftOut
from llavakit.documents.tasks import Task
from llavakit.documents.text_layer import TextLayer, Word
from llavakit.documents.tiles import Tiles
from llavakit.documents.view import View

__all__ = [
    "Confidence",
    "Document",
    "Failure",
    "Job",
    "LeftOut",
    "Page",
    "PageCitation",
    "PageRange",
    "PageReference",
    "PageStore",
    "PagesInContext",
    "Reading",
    "Tally",
    "Task",
    "TextLayer",
    "Tiles",
    "View",
    "Word",
    "ask_about",
    "boxes_of",
    "cite",
    "cite_answer",
    "count_pages",
    "describe",
    "extract",
    "fit_pages",
    "message_pages",
    "open_files",
    "open_pages",
    "read_pages",
    "reopen",
    "run_job",
    "stream_job",
    "to_line",
    "transcribe",
]
