"""Every public callable meets every wrong value of every argument with a sentence, or works.

A sentence is an error of llavakit's own, or Python's or pydantic's that names the argument. The
walk knows no callable by name: what is new in an ``__all__`` is walked as well.
"""

import asyncio
import importlib
import inspect
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.documents.base import Blob
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings.mock_embed_model import MockEmbedding
from llama_index.core.llms import ChatMessage, ChatResponse, ImageBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import ImageNode, NodeWithScore
from pydantic import ValidationError

import llavakit
from llavakit import documents, evaluation, langchain, llama_index, questions, retrieval, serving
from llavakit.documents import PageReference, PageStore, Task, open_files
from llavakit.errors import LlavaKitError
from llavakit.testing import FakeBackend
from tests.retrieval.colours import ColourEmbedder

HEART, PAGES = "examples/data/heart.png", "examples/data/pages.pdf"

WRONG = {
    "None": lambda: None,
    "an empty string": lambda: "",
    "a string": lambda: "nope",
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "an object": object,
    "an empty list": list,
    "an empty dict": dict,
    "a list of objects": lambda: [object()],
    "a dict of objects": lambda: {"nope": object()},
    "a generator": lambda: (one for one in [object()]),
    "bytes": lambda: b"",
    "True": lambda: True,
    "a path": lambda: Path("there/is/no/such/file"),
    "a function": lambda: lambda: None,
    "a class": lambda: int,
    "NaN": lambda: float("nan"),
}

NOT_WALKED = {
    "model_post_init": "pydantic calls it",
    "model_copy": "its arguments are pydantic's",
    "startup": "uvicorn calls it",
    "capture_signals": "uvicorn calls it",
    "handle_exit": "uvicorn calls it",
    "shutdown": "uvicorn calls it",
    "close": "the model of this module is shared",
    "get_token_ids": "LangChain asks for NotImplementedError",
}
OF_FRAMEWORKS = {
    *("callbacks", "callback_manager", "config", "run_manager", "tags", "metadata", "run_name"),
    *("run_id", "fs", "additional_source_nodes", "input"),
}
"""Arguments that are handed on to the framework unread; it has sentences of its own."""

CALLED = {"progress", "pictures", "loaded", "listening", "completion_to_prompt"}
"""Arguments that are functions: what one of them raises is its own affair."""

LAYER = documents.TextLayer("word", (documents.Word("word", (0.0, 0.0, 1.0, 1.0)),))

MODULES = (
    *(llavakit, documents, questions, retrieval, serving, evaluation, langchain, llama_index),
)


def public():
    """The names of all public callables, and of the public methods of public classes."""
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                yield f"{module.__name__}:{name}"
            if inspect.isclass(thing):
                yield from (f"{module.__name__}:{name}.{method}" for method in methods_of(thing))


def methods_of(cls):
    """The methods that are written here, also those that override a framework's."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("llavakit")]
    names = dict.fromkeys(name for base in ours for name in vars(base) if name[0] != "_")
    for name in sorted(names.keys() - NOT_WALKED.keys()):
        held = inspect.getattr_static(cls, name)
        if isinstance(held, (staticmethod, classmethod)) or inspect.isroutine(held):
            yield name


class World:
    """A right value for each argument, and an object of each class."""

    def __init__(self, backend, folder):
        self.folder = folder
        self.backend = backend
        self.store = PageStore(folder / "store")
        self.page = next(iter(open_files(HEART)))
        self.reference = PageReference.of(self.page, store=self.store)
        self.task = Task("transcribe", max_tokens=4)
        self.job = documents.Job((HEART,), self.task, "demo")
        self.node = ImageNode(text="a", image_path=HEART)
        self.found = [NodeWithScore(node=self.node)]
        self.index = VectorStoreIndex(nodes=[self.node], embed_model=MockEmbedding(embed_dim=2))
        self.llm = llama_index.LLaVA(backend=backend, temperature=0, max_tokens=4)
        self.chat = langchain.ChatLLaVA(backend=backend, temperature=0, max_tokens=4)
        self.document = LangChainDocument("a", metadata=self.reference.metadata())
        self.question = evaluation.Question(0, 0, "What is it?", Path(HEART))
        self.data = evaluation.Data(folder)
        self.embedder = ColourEmbedder()
        self.pages = retrieval.PageIndex(folder / "index", self.embedder)
        self.pages.update(HEART)
        (self.hit,) = self.pages.search("red", 1)
        (page,), (words,) = self.embedder.embed(images=[HEART]), self.embedder.embed(texts=["red"])
        self.seen = retrieval.SimilarityMap.of(self.page.picture, page, words)
        self.embedding = page

    def right(self, path, name):
        """A right value for an argument; KeyError where nothing is known of it."""
        if name == "app":
            return serving.create_app(FakeBackend())
        if name == "data" and not path.startswith("llavakit.evaluation"):
            return self.written(path)
        return self._right(path)[name]

    def _right(self, path):
        lc = path.startswith("llavakit.langchain")
        known = {
            "accepted": ["red"],
            "answer": "red",
            "answers": [("yes", "no")],
            "arguments": {},
            "backend": self.backend,
            "before": [],
            "benchmark": Benchmark(self.data),
            "blob": Blob.from_path(HEART),
            "chat_history": [],
            "content": "a",
            "data": self.data,
            "digest": self.page.digest,
            "documents": [self.document],
            "error": llavakit.errors.DocumentError("It is damaged."),
            "file": PAGES,
            "finish_reason": "stop",
            "folder": self.folder,
            "grace": 1.0,
            "id": "1",
            "image": "image_1" if "Question" in path or "Asker" in path else HEART,
            "images": [HEART],
            "image_documents": [ImageBlock(path=HEART)],
            "index": self.index,
            "job": self.job,
            "known": {},
            "last": 3,
            "limit": 1,
            "llm": self.llm,
            "message": llavakit.Message("user", "a"),
            "messages": self.messages(path),
            "metadata": self.reference.metadata(),
            "model": self.chat if lc and "age" in path and "Tool" not in path else "demo",
            "most": 2,
            "n": 1,
            "name": "transcribe" if path.endswith("Task") else "pope",
            "node": self.node,
            "nodes": self.found,
            "number": 1,
            "out": self.folder / f"out {next(_NUMBERS)}",
            "output_cls": questions.ImageQuestion,
            "page": self.page,
            "pages": [self.page],
            "parts": ((1, 2),),
            "people": ["red"] * 10,
            "picture": self.page.picture,
            "pictures": questions.Pictures,
            "prompt": "What is it?",
            "prompts": ["What is it?"],
            "query": "What is it?",
            "query_str": "What is it?",
            "question": "What is it?",
            "reading": documents.Reading("a", 1, "transcribe"),
            "references": [self.reference],
            "reach": questions.Reach(),
            "reference": "image_1",
            "request": llavakit.Request((llavakit.Message("user", "a"),)),
            "response": ChatResponse(message=ChatMessage(role="assistant", content="a")),
            "retriever": RunnableLambda(lambda query: [self.document]),
            "schema": {"type": "object", "properties": {}},
            "completions": [llavakit.Completion("a")],
            "context_length": 100,
            "cut": 0,
            "depth": 5,
            "done": 1,
            "elsewhere": "",
            "embedder": Embedder(),
            "fingerprint": "",
            "id_column": "id",
            "ids": (),
            "pool": 1,
            "queries": (),
            "ranked": ["a"],
            "relevance": {"a": 1},
            "tasks": (),
            "errors": 0,
            "files": (),
            "input": "What is it?",
            "of": 1,
            "questions": 1,
            "revision": "",
            "scores": (),
            "title": "drawn",
            "total": 1,
            "low": None,
            "high": None,
            "interval": "",
            "results": evaluation.Results("drawn", "drawn", "demo", "", 1, 1, 0, 0, (), "", ()),
            "unit": "%",
            "value": 1.0,
            "earlier": 0,
            "failures": 0,
            "left_out": (),
            "model_name": "demo",
            "role": "user",
            "tokens": 1,
            "usages": [llavakit.Usage()],
            "usage": llavakit.Usage(),
            "box": (0.0, 0.0, 1.0, 1.0),
            "count": 1,
            "layer": LAYER,
            "lowest": 0.5,
            "mean": 0.7,
            "quote": "word",
            "sha256": self.page.digest,
            "size": (300, 200),
            "source": HEART,
            "sources": [HEART],
            "task": self.task,
            "text": "2x3" if path.endswith("Tiles.parse") else "1-2",
            "text_chunks": ["a"],
            "texts": ["a"],
            "things": [],
            "tools": [],
        }
        if not path.startswith("llavakit.evaluation"):
            known["embedder"] = self.embedder
        if path.endswith(":PageImageRetriever"):
            known["index"] = self.pages
        if path.startswith("llavakit.retrieval"):
            known |= self._of_retrieval(path)
        if path == "llavakit.llama_index:page_query_engine":
            known["source"] = self.index
        if path.startswith(("llavakit.documents:cite", "llavakit.documents:PageCitation")):
            known["reference"] = self.reference
        if path == "llavakit.documents:cite_answer":
            known |= {"references": [self.reference], "answer": "word"}
        if path == "llavakit.documents:LeftOut":
            known["counts"] = {".docx": 1}
        if path.endswith("to_retrieval_table"):
            known["results"] = self.thing("llavakit.evaluation:RetrievalResults")
        if path == "llavakit.documents:message_pages":
            known["source"] = llavakit.Image(PAGES)
            known["most"] = 8
        if path.startswith("llavakit.documents:open_pages"):
            known["pages"] = [1]
        if path.endswith("structured_predict"):
            known["prompt"] = PromptTemplate("What is it?")
        if path.startswith("llavakit.questions:Shown"):
            known["source"] = llavakit.Image(HEART)
        return known

    def _of_retrieval(self, path):
        known = {
            "added": 1,
            "changed": (),
            "documents": 1,
            "folder": self.folder / "index",
            "item": self.reference,
            "kept": 0,
            "lost": 1,
            "message": "It is damaged.",
            "new": (),
            "pages": 1,
            "paths": HEART,
            "places": self.seen.places,
            "products": self.seen.products,
            "rankings": [["a"]],
            "reference": self.reference,
            "removed": (),
            "score": 1.0,
            "text": "",
            "type": "DocumentError",
            "without_text": 0,
            "words": ("red",),
        }
        if path.endswith("SimilarityMap.of"):
            known |= {"page": self.embedding, "question": self.embedding}
        return known

    def messages(self, path):
        if path.startswith("llavakit.langchain"):
            one = HumanMessage("What is it?")
            return [[one]] if path.endswith("generate") else [one]
        if path.startswith("llavakit.llama_index"):
            return [ChatMessage(role="user", content="What is it?")]
        return [llavakit.Message("user", "What is it?")]

    def written(self, path):
        name = path.partition(":")[2].partition(".")[0]
        if name == "SourcePolicy":
            return llavakit.SourcePolicy().to_dict()
        thing = self.thing(path)
        return thing.to_dict() if hasattr(thing, "to_dict") else {}

    def thing(self, path):
        """The object whose method is called."""
        module, _, name = path.partition(":")
        name = name.partition(".")[0]
        lc = module == "llavakit.langchain"
        made = {
            "Backend": lambda: self.backend,
            "Benchmark": lambda: Benchmark(self.data),
            "ChatLLaVA": lambda: self.chat,
            "Data": lambda: self.data,
            "ImageQuestionTool": lambda: (langchain if lc else llama_index).ImageQuestionTool(
                backend=self.backend, attachments={"plan": HEART}, max_tokens=4
            ),
            "LLaVA": lambda: self.llm,
            "LLaVALLM": lambda: langchain.LLaVALLM(backend=self.backend, max_tokens=4),
            "LLaVAMultiModal": lambda: llama_index.LLaVAMultiModal(
                backend=self.backend, max_tokens=4
            ),
            "Hit": lambda: self.hit,
            "PageEmbedding": lambda: llama_index.PageEmbedding(self.embedder),
            "PageEmbeddings": lambda: langchain.PageEmbeddings(self.embedder),
            "PageImageRetriever": lambda: (langchain if lc else llama_index).PageImageRetriever(
                index=self.pages
            ),
            "PageIndex": lambda: self.pages,
            "SimilarityMap": lambda: self.seen,
            "PageImageLoader": lambda: langchain.PageImageLoader(HEART),
            "PageImageParser": lambda: langchain.PageImageParser(self.chat),
            "PageImageReader": lambda: llama_index.PageImageReader(llm=self.llm, pages="1"),
            "PageCitation": lambda: documents.PageCitation(self.reference),
            "Confidence": lambda: documents.Confidence(0.7, 0.5),
            "LeftOut": lambda: documents.LeftOut("a", {".docx": 1}),
            "TextLayer": lambda: LAYER,
            "Word": lambda: LAYER.words[0],
            "PageRange": lambda: documents.PageRange.parse("1-2"),
            "PageReference": lambda: self.reference,
            "PageStore": lambda: self.store,
            "PageSynthesizer": lambda: llama_index.PageSynthesizer(self.llm),
            "ImageAnswer": lambda: questions.ImageAnswer(
                "a", "b", "c", "d", (1, 1), "demo", "stop", llavakit.Usage()
            ),
            "ImageAsker": lambda: questions.ImageAsker(backend=self.backend, max_tokens=4),
            "ImageResolver": lambda: llama_index.ImageResolver(),
            "PictureResolver": lambda: llama_index.PictureResolver(),
            "Pictures": questions.Pictures,
            "Question": lambda: self.question,
            "Results": lambda: evaluation.Results(
                "drawn", "drawn", "demo", "", 1, 1, 0, 0, (), "", ()
            ),
            "RetrievalResults": lambda: evaluation.RetrievalResults(
                "vidore", "ViDoRe", "demo", "", 1, (), ()
            ),
            "RetrievalTask": lambda: evaluation.RetrievalTask("a", (), (), (), "id"),
            "SamplingParams": llavakit.SamplingParams,
            "ServerSettings": serving.ServerSettings,
            "SourcePolicy": llavakit.SourcePolicy,
            "Task": lambda: self.task,
            "Tiles": documents.Tiles,
        }
        return made[name]()

    def call(self, path):
        """What is called, and the names of its arguments with whether each is needed."""
        module, _, name = path.partition(":")
        thing = getattr(importlib.import_module(module), name.partition(".")[0])
        if "." in name:
            name = name.partition(".")[2]
            held = inspect.getattr_static(thing, name)
            static = isinstance(held, (staticmethod, classmethod))
            thing = getattr(thing if static else self.thing(path), name)
        elif path == "llavakit.evaluation:Benchmark":
            thing = Benchmark
        elif path == "llavakit.llama_index:ImageQuestionTool":
            thing = partial(thing, model="demo")
        return thing, arguments_of(thing)


class Embedder:
    fingerprint, dimensions = "", 1

    def embed(self, *, images=None, texts=None):
        return []


class Benchmark(evaluation.Benchmark):
    name = title = "drawn"

    def read(self):
        return [evaluation.Question(0, 0, "What is it?", Path(HEART).absolute())]

    def scores(self, answers):
        return []


_NUMBERS = itertools.count()


def arguments_of(thing):
    if inspect.isclass(thing) and hasattr(thing, "model_fields"):
        ours = [base for base in thing.__mro__ if base.__module__.startswith("llavakit")]
        names = {name for base in ours for name in vars(base).get("__annotations__", {})}
        fields = {name: one for name, one in thing.model_fields.items() if name in names}
        return {name: one.is_required() for name, one in fields.items()}
    return {
        name: one.default is one.empty
        for name, one in inspect.signature(thing).parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }


def run(call, given):
    """Calls, and goes a few steps through what is given step by step."""
    result = call(**given)
    if inspect.isasyncgen(result) or inspect.isawaitable(result):
        asyncio.run(_awaited(result))
    elif isinstance(result, Iterator):
        for _ in itertools.islice(result, 2):
            pass
        getattr(result, "close", lambda: None)()


async def _awaited(result):
    if inspect.isawaitable(result):
        result = await result
    if isinstance(result, AsyncIterator):
        async for _ in result:
            break
        await result.aclose()


def fault(error, name):
    """What is wrong with an error about an argument; None if nothing is."""
    if isinstance(error, LlavaKitError):
        return None
    text = str(error)
    if isinstance(error, ValidationError):
        causes = [one.get("ctx", {}).get("error") for one in error.errors()]
        if all(isinstance(cause, LlavaKitError) for cause in causes):
            return None
    # Of a dict whose keys are the arguments, pydantic names the key.
    named = name in text or (isinstance(error, ValidationError) and "\nnope\n" in text)
    if isinstance(error, (TypeError, ValidationError)) and named and "()" not in text:
        return None
    return f"{type(error).__name__}: {text[:200]}"


@pytest.fixture(scope="module")
def world(demo_backend, tmp_path_factory):
    return World(demo_backend, tmp_path_factory.mktemp("world"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(set(public())))
def test_a_wrong_value_is_met_with_a_sentence_or_taken(path, world, tmp_path):
    examples = Path("examples").absolute()
    (tmp_path / "examples").symlink_to(examples)  # what is wrong may be taken for a file to write
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        call, names = world.call(path)
        faults = []
        for name in names.keys() - OF_FRAMEWORKS:
            for words, wrong in WRONG.items():
                if name in CALLED and callable(wrong()):
                    continue
                given = {n: world.right(path, n) for n, needed in names.items() if needed}
                try:
                    run(call, {**given, name: wrong()})
                except Exception as error:
                    if found := fault(error, name):
                        faults.append(f"{name} = {words}: {found}")
    finally:
        os.chdir(before)
    assert not faults, "\n" + "\n".join(faults)
