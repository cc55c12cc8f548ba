"""What an object may open is the same wherever it comes back: copied, pickled, or written down.

Where it cannot be the same, the object is refused. It is never the default, which is open.
"""

import copy
import json
import pickle
from dataclasses import fields, replace

import pytest
from langchain_core.load import dumps, loads
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from pydantic import BaseModel, ValidationError

import llavakit
from llavakit import SourcePolicy, langchain, llama_index
from llavakit.errors import LlavaKitError, ParameterError, SourceNotAllowedError
from llavakit.questions import ImageAsker
from llavakit.testing import FakeBackend

HEART = "examples/data/heart.png"
FENCE = SourcePolicy(roots=("/srv/pictures",), allow_urls=False, max_bytes=10_000, timeout=2.5)

MODELS = (
    langchain.ChatLLaVA,
    langchain.LLaVALLM,
    langchain.ImageQuestionTool,
    llama_index.LLaVA,
    llama_index.LLaVAMultiModal,
    ImageAsker,
)
COMPONENTS = (llama_index.ImageResolver, llama_index.PageImageReader)

COPIES = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
WRITTEN = {
    "model_dump": lambda thing: type(thing).model_validate(thing.model_dump()),
    "json": lambda thing: type(thing).model_validate_json(thing.model_dump_json()),
    "set alone": lambda thing: type(thing).model_validate(thing.model_dump(exclude_unset=True)),
    "model_copy": lambda thing: thing.model_copy(),
    "deep model_copy": lambda thing: thing.model_copy(deep=True),
}
COMPONENT = {
    "to_dict": lambda thing: type(thing).from_dict(thing.to_dict()),
    "to_json": lambda thing: type(thing).from_json(thing.to_json()),
}


def ways(cls):
    framework = COMPONENT if hasattr(cls, "to_dict") else {}
    return COPIES | WRITTEN | framework


def every_way(*classes):
    return [
        pytest.param(cls, way, id=f"{cls.__module__.rpartition('.')[0]}.{cls.__name__}-{name}")
        for cls in classes
        for name, way in ways(cls).items()
    ]


@pytest.mark.parametrize(("cls", "way"), every_way(*MODELS))
def test_a_model_that_comes_back_has_its_fence(cls, way):
    assert way(cls(model="demo", source_policy=FENCE)).policy == FENCE


@pytest.mark.parametrize(("cls", "way"), every_way(*COMPONENTS))
def test_a_component_that_comes_back_has_its_fence(cls, way):
    assert way(cls(policy=FENCE)).policy == FENCE


@pytest.mark.parametrize("way", COMPONENT | WRITTEN | COPIES)
def test_a_model_within_a_reader_keeps_a_fence_of_its_own(way):
    reader = llama_index.PageImageReader(
        policy=FENCE, llm=llama_index.LLaVA(model="demo", source_policy=FENCE), store="pages"
    )
    found = (COMPONENT | WRITTEN | COPIES)[way](reader)
    assert found.policy == found.llm.policy == FENCE


@pytest.mark.parametrize(("cls", "way"), every_way(*MODELS))
def test_the_fence_of_a_backend_outlives_the_backend(cls, way):
    model = cls(backend=FakeBackend(policy=FENCE))
    try:
        found = way(model)
    except ParameterError as error:
        assert "cannot be pickled" in str(error)
    else:
        assert found.policy == FENCE


@pytest.mark.parametrize("cls", MODELS)
def test_a_backend_that_is_taken_away_or_given_leaves_its_fence(cls):
    fenced = FakeBackend(policy=FENCE)
    assert cls(backend=fenced).model_copy(update={"backend": None}).policy == FENCE
    given = cls(model="demo").model_copy(update={"backend": fenced})
    assert cls.model_validate(given.model_dump()).policy == FENCE


def test_another_model_than_that_of_a_fenced_backend_stands_behind_the_same_fence():
    model = langchain.LLaVALLM(backend=FakeBackend(policy=FENCE))
    assert model.backend_for("demo").policy == FENCE
    assert model.called_with(model="demo").policy == FENCE


@pytest.mark.parametrize("cls", [*MODELS, *COMPONENTS])
def test_what_was_written_down_and_lost_its_fence_is_refused(cls):
    field = "policy" if cls in COMPONENTS else "source_policy"
    rest = {} if cls in COMPONENTS else {"model": "demo"}
    written = cls(**rest, **{field: FENCE}).model_dump()
    del written[field]
    with pytest.raises((ParameterError, ValidationError), match=f"without its {field}"):
        cls.model_validate(written)
    if hasattr(cls, "from_dict"):
        with pytest.raises(ParameterError, match=f"without its {field}"):
            cls.from_dict(written)
        assert getattr(cls.from_dict(written, **{field: FENCE}), field) == FENCE


@pytest.mark.parametrize("cls", [*MODELS, *COMPONENTS])
@pytest.mark.parametrize("lost", [field.name for field in fields(SourcePolicy)])
def test_a_fence_that_lost_a_part_is_refused(cls, lost):
    field = "policy" if cls in COMPONENTS else "source_policy"
    rest = {} if cls in COMPONENTS else {"model": "demo"}
    written = cls(**rest, **{field: FENCE}).model_dump()
    del written[field][lost]
    with pytest.raises((ParameterError, ValidationError), match=f"written without '{lost}'"):
        cls.model_validate(written)


def test_what_somebody_writes_by_hand_needs_no_policy():
    assert llama_index.LLaVA.from_dict({"model": "demo"}).policy == SourcePolicy()
    assert llama_index.ImageResolver.from_dict({"on_error": "skip"}).policy == SourcePolicy()
    assert langchain.ChatLLaVA.model_validate({"model": "demo"}).policy == SourcePolicy()


@pytest.mark.parametrize("tool", [langchain.ImageQuestionTool, llama_index.ImageQuestionTool])
@pytest.mark.parametrize("way", COPIES)
def test_a_tool_that_is_copied_answers_behind_the_same_fence(tool, way, demo_backend):
    fence = SourcePolicy(roots=("examples/data",), allow_urls=False)
    made = tool(model="demo", source_policy=fence, attachments={"a": HEART, "b": "README.md"})
    found = COPIES[way](made)
    asker = getattr(found, "asker", found)
    asked = {"question": "What colour is the heart?", "image": "a"}
    told = found.invoke(asked) if tool is langchain.ImageQuestionTool else found(**asked).content
    assert asker.policy == fence and told == '"red"'
    with pytest.raises(SourceNotAllowedError):
        asker.ask("What is it?", "b", asker.pictures)


def test_a_copied_tool_of_llama_index_is_itself_and_not_its_original():
    tool = llama_index.ImageQuestionTool(model="demo", name="look", return_direct=True)
    found = copy.deepcopy(tool)
    assert found.metadata == tool.metadata and found.asker is not tool.asker
    assert found.fn.__self__ is found and found.requires_context and found.ctx_param_name == "ctx"


@pytest.mark.parametrize("way", COPIES)
def test_loaders_and_parsers_of_pages_keep_their_fence(way, tmp_path):
    fence = SourcePolicy(roots=(tmp_path,))
    loader = COPIES[way](langchain.PageImageLoader(HEART, policy=fence))
    with pytest.raises(SourceNotAllowedError):
        loader.load()
    model = langchain.ChatLLaVA(model="demo", source_policy=fence)
    parser = COPIES[way](langchain.PageImageParser(model, policy=fence))
    with pytest.raises(SourceNotAllowedError):
        list(parser.lazy_parse(langchain_blob()))


def langchain_blob():
    from langchain_core.documents.base import Blob

    return Blob.from_path(HEART)


@pytest.mark.parametrize("way", COPIES)
def test_a_synthesizer_keeps_the_fence_of_its_model(way):
    made = llama_index.PageSynthesizer(llama_index.LLaVA(model="demo", source_policy=FENCE))
    assert COPIES[way](made)._model.policy == FENCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", MODELS[:3])
def test_what_langchain_loads_has_the_fence_or_is_refused(cls):
    written = dumps(cls(model="demo", source_policy=FENCE))
    for options in ({}, {"ignore_unserializable_fields": True}):
        try:
            found = loads(written, valid_namespaces=["llavakit"], allowed_objects=[cls], **options)
        except (NotImplementedError, ValueError):
            continue
        assert found is None or found.policy == FENCE


def test_a_model_that_was_read_back_opens_no_more_than_before(tmp_path):
    model = llama_index.LLaVA(model="demo", source_policy=SourcePolicy(roots=(tmp_path,)))
    asked = [ChatMessage(blocks=[ImageBlock(path=HEART), TextBlock(text="What colour is it?")])]
    for found in (model, llama_index.LLaVA.from_json(model.to_json())):
        with pytest.raises(SourceNotAllowedError):
            found.chat(asked)


@pytest.mark.parametrize(
    "policy",
    [SourcePolicy(), FENCE, SourcePolicy(roots=()), replace(FENCE, roots=("a", "b"))],
    ids=["open", "fence", "no file", "two roots"],
)
def test_a_policy_is_plain_data_and_comes_back_equal(policy):
    class Holder(BaseModel):
        policy: SourcePolicy | None = None

    written = json.loads(json.dumps(policy.to_dict()))
    assert SourcePolicy.from_dict(written) == policy
    assert Holder.model_validate_json(Holder(policy=policy).model_dump_json()).policy == policy
    assert Holder.model_json_schema() and Holder.model_json_schema(mode="serialization")


@pytest.mark.parametrize(
    "written", [{}, {"roots": None}, {**FENCE.to_dict(), "roots": 3}, {**FENCE.to_dict(), "no": 1}]
)
def test_a_malformed_policy_is_refused_in_words(written):
    with pytest.raises(ParameterError):
        SourcePolicy.from_dict(written)
    with pytest.raises((LlavaKitError, ValidationError)):
        langchain.ChatLLaVA(model="demo", source_policy=written)


def test_a_backend_is_shared_by_copies_and_never_pickled():
    backend = llavakit.load("demo", source_policy=FENCE)
    assert copy.deepcopy(backend) is backend
    with pytest.raises(ParameterError, match="cannot be pickled"):
        pickle.dumps(backend)
