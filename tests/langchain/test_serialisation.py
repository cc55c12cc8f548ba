"""Model objects through LangChain's own serialisation, and as JSON schemas."""

import json
import os

import pytest
from langchain_core.load import dumpd, dumps, loads

from llavakit import SourcePolicy
from llavakit.langchain import ChatLLaVA, LLaVALLM
from llavakit.testing import FakeBackend

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
FENCE = SourcePolicy(roots=("/srv/pictures",), allow_urls=False)
CLASSES = [ChatLLaVA, LLaVALLM]


def again(model):
    kind = type(model)
    return loads(
        dumps(model), valid_namespaces=["llavakit"], allowed_objects=[kind], secrets_from_env=True
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_settings_and_fence_come_back(kind):
    model = kind(model="demo", temperature=0, top_k=3, stop=["x"], n=2, source_policy=FENCE)
    read = again(model)
    assert read.source_policy == FENCE and read.policy == FENCE
    assert read.identity() == model.identity() and read.n == 2


@pytest.mark.parametrize("kind", CLASSES)
def test_without_a_fence_the_default_is_written_as_such(kind):
    assert dumpd(kind(model="demo"))["kwargs"]["source_policy"] is None
    assert again(kind(model="demo")).source_policy is None


@pytest.mark.parametrize("kind", CLASSES)
def test_a_key_is_written_as_its_name_and_read_from_there(kind, monkeypatch):
    model = kind(model="m", base_url="http://host:1", api_key="very-secret")
    text = dumps(model)
    assert "very-secret" not in text and "LLAVAKIT_API_KEY" in text
    monkeypatch.setitem(os.environ, "LLAVAKIT_API_KEY", "another")
    assert again(model).api_key.get_secret_value() == "another"


@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_with_a_backend_of_its_own_is_no_data(kind):
    assert dumpd(kind(backend=FakeBackend()))["type"] == "not_implemented"


@pytest.mark.parametrize("kind", CLASSES)
def test_a_json_schema_can_be_had(kind):
    schema = kind.model_json_schema()
    assert {"model", "temperature", "base_url"} <= schema["properties"].keys()
    assert not {"backend", "http_client"} & schema["properties"].keys()
    json.dumps(schema)
