"""Errors are llavakit's and LangChain's at once, so that its middlewares know what to do."""

import copy
import pickle

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, SummarizationMiddleware
from langchain_core import exceptions as theirs
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage

from llavakit import errors as ours
from llavakit.langchain import ChatLLaVA, LLaVALLM
from llavakit.langchain.errors import twin
from llavakit.testing import FakeBackend

KINDS = [
    (ours.ContextLengthError("Too long.", prompt_tokens=7), theirs.ContextOverflowError, False),
    (ours.RequestTimeoutError("Late."), theirs.ModelTimeoutError, True),
    (ours.QueueFullError("Full."), theirs.ModelRateLimitError, True),
    (ours.ModelNotFoundError("None."), theirs.ModelNotFoundError, False),
    (ours.CheckpointError("Broken."), theirs.ModelError, False),
    (ours.ImageDecodeError("Damaged."), theirs.ModelInvalidRequestError, False),
    (ours.SchemaError("No schema."), theirs.ModelInvalidRequestError, False),
    (ours.SourceFetchError("Half-way."), theirs.ModelInvalidRequestError, True),
    (ours.EngineClosedError("Closed."), theirs.ModelAPIError, True),
    (ours.OutOfMemoryError("No room."), theirs.ModelError, False),
    (ours.MissingDependencyError("pip install."), theirs.ModelError, False),
    (ours.RemoteError("Key?", status=401), theirs.ModelAuthenticationError, False),
    (ours.RemoteError("No.", status=403), theirs.ModelPermissionDeniedError, False),
    (ours.RemoteError("Bad.", status=400), theirs.ModelInvalidRequestError, False),
    (ours.RemoteError("Late.", status=408), theirs.ModelTimeoutError, True),
    (ours.RemoteError("Down.", status=503), theirs.ModelAPIError, True),
    (ours.RemoteError("No answer."), theirs.ModelConnectionError, True),
]


async def raised_by(model):
    """What every way of asking raises."""
    found = []
    for ask in (model.invoke, lambda q: list(model.stream(q)), lambda q: model.batch([q])):
        try:
            ask("q")
        except Exception as error:
            found.append(error)
    try:
        await model.ainvoke("q")
    except Exception as error:
        found.append(error)
    try:
        async for _ in model.astream("q"):
            pass
    except Exception as error:
        found.append(error)
    return found


@pytest.mark.parametrize("kind", [ChatLLaVA, LLaVALLM])
@pytest.mark.parametrize(("error", "their_kind", "retryable"), KINDS)
async def test_every_way_raises_an_error_of_both_trees(kind, error, their_kind, retryable):
    found = await raised_by(kind(backend=FakeBackend([error])))
    assert len(found) == 5
    for raised in found:
        assert isinstance(raised, type(error)) and isinstance(raised, their_kind)
        assert raised.is_retryable is retryable
        assert str(raised) == str(error) and vars(raised) == vars(error)
        assert type(raised).__name__.endswith(type(error).__name__) or isinstance(
            error, ours.RemoteError
        )


@pytest.mark.parametrize(("error", "their_kind", "retryable"), KINDS)
def test_a_twin_survives_pickle_and_copy(error, their_kind, retryable):
    made = twin(error)
    for again in (pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert type(again) is type(made) and again.args == made.args
        assert vars(again) == vars(made)
    assert twin(made) is made


def test_an_error_that_somebody_else_derived_is_still_caught_by_its_class():
    class Mine(ours.QueueFullError):
        """Of another package."""

    made = twin(Mine("Full."))
    assert isinstance(made, ours.QueueFullError) and isinstance(made, theirs.ModelRateLimitError)


def test_the_cause_stays(demo_dir):
    try:
        try:
            raise OSError("disk")
        except OSError as error:
            raise ours.SourceFetchError("Half-way.") from error
    except ours.SourceFetchError as error:
        made = twin(error)
    assert isinstance(made.__cause__, OSError)


class Starts(BaseCallbackHandler):
    def __init__(self):
        self.count = 0

    def on_chat_model_start(self, *args, **kwargs):
        self.count += 1


LONG = "red circle " * 3000


@pytest.fixture
def model(demo_backend):
    return ChatLLaVA(backend=demo_backend, temperature=0)


def test_summarisation_shrinks_what_is_too_long_and_goes_on(model):
    history = [m for _ in range(3) for m in (HumanMessage("red circle " * 700), AIMessage("ok"))]
    middleware = SummarizationMiddleware(
        model=model, trigger=("messages", 4), keep=("messages", 1), trim_tokens_to_summarize=None
    )
    agent = create_agent(model, [], middleware=[middleware])
    messages = agent.invoke({"messages": [*history, HumanMessage("Say hello.")]})["messages"]
    assert isinstance(messages[-1], AIMessage) and len(messages) < len(history)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([ours.ContextLengthError("Too long.")], 1),
        ([ours.ImageDecodeError("Damaged.")], 1),
        ([ours.ModelNotFoundError("None.")], 1),
        ([ours.QueueFullError("Full."), ours.RequestTimeoutError("Late."), "ok"], 3),
        ([ours.RemoteError("Down.", status=503), "ok"], 2),
    ],
)
def test_what_can_never_work_is_asked_once_and_what_may_again(answers, asked):
    starts = Starts()
    middleware = ModelRetryMiddleware(
        max_retries=2, initial_delay=0.001, jitter=False, on_failure="error"
    )
    agent = create_agent(ChatLLaVA(backend=FakeBackend(answers)), [], middleware=[middleware])
    question = {"messages": [HumanMessage("q")]}
    if answers[-1] == "ok":
        assert agent.invoke(question, {"callbacks": [starts]})["messages"][-1].text == "ok"
    else:
        with pytest.raises(theirs.ModelError):
            agent.invoke(question, {"callbacks": [starts]})
    assert starts.count == asked


def test_the_real_engine_raises_it_as_well(model):
    with pytest.raises(theirs.ContextOverflowError) as caught:
        model.invoke([HumanMessage(LONG)])
    assert isinstance(caught.value, ours.ContextLengthError) and caught.value.prompt_tokens > 4000
