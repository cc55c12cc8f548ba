"""Both frameworks' model classes with a server: settings, and a key that is nowhere to be found."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from llavakit.langchain import ChatLLaVA, LLaVALLM
from llavakit.llama_index import LLaVA
from tests.remote.scripted import words

KEY = "sesame-open"
CLASSES = [ChatLLaVA, LLaVALLM, LLaVA]


def made(cls: type[Any], **settings: Any) -> Any:
    return cls(model="m", **{"base_url": "http://h:1", "api_key": KEY, **settings})


@pytest.mark.parametrize("cls", CLASSES)
def test_the_key_is_in_no_text_pickle_or_identity(cls, monkeypatch):
    model = made(cls)
    told = [repr(model), str(model), json.dumps(model.identity(), default=str)]
    assert not [text for text in told if KEY in text]
    stored = pickle.dumps(model)
    assert KEY.encode() not in stored
    monkeypatch.setenv("LLAVAKIT_API_KEY", "of-the-reader")
    assert pickle.loads(stored).api_key.get_secret_value() == "of-the-reader"
    assert pickle.loads(pickle.dumps(made(cls, api_key=None))).api_key is None


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_in_the_process_keep_the_key(cls):
    for copied in (copy.copy, copy.deepcopy, lambda model: model.model_copy()):
        assert copied(made(cls)).api_key.get_secret_value() == KEY


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"max_tokens": "many"}, {"base_url": f"http://u:{KEY}@h"}, {"x": 1}],
)
def test_errors_of_construction_do_not_quote_the_key(cls, wrong):
    with pytest.raises(ValueError) as caught:
        made(cls, **wrong)
    assert KEY not in str(caught.value) + repr(caught.value)


@pytest.mark.enable_socket
@pytest.mark.parametrize("cls", CLASSES)
def test_settings_reach_the_server(cls, peer):
    peer.says(words("a red circle"))
    model = made(cls, base_url=f"{peer.url}/v1", dialect="vllm", max_retries=0, top_k=7, seed=3)
    ask = model.complete if cls is LLaVA else model.invoke
    assert "a red circle" in str(ask("What is it?"))
    assert peer.asked[0]["model"] == "m"
    assert (peer.asked[0]["top_k"], peer.asked[0]["seed"]) == (7, 3)
    assert peer.seen[0][2]["Authorization"] == f"Bearer {KEY}"
    backend = model.backend_for()
    assert backend.config.max_retries == 0
    backend.close()
