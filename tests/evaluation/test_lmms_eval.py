"""The model that lmms-eval drives, under a stand-in of lmms-eval's own interface.

The stand-in has what ``lmms_eval/api/model.py``, ``api/instance.py`` and ``models/registry_v2.py``
of lmms-eval 0.7 promise: the base class with its abstract methods, instances whose ``args`` are
(context, doc_to_messages, settings, document id, task, split), and manifests of class paths.
"""

import abc
import importlib
import sys
import types
from dataclasses import dataclass

import pytest

import llavakit
from llavakit.errors import MissingDependencyError, ParameterError, UnsupportedContentError
from llavakit.evaluation import lmms_eval as adapter
from llavakit.testing import FakeBackend
from llavakit.values import SamplingParams
from tests.evaluation.datasets import SCENES, draw


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arguments, more):
        given = dict(one.split("=", 1) for one in arguments.split(",") if one)
        return cls(**given, **{name: value for name, value in more.items() if value is not None})


class CacheHook:
    def __init__(self):
        self.partial = []

    def add_partial(self, kind, request, result):
        self.partial.append((kind, request, result))


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Instance:
    arguments: tuple

    @property
    def args(self):
        return self.arguments


@pytest.fixture
def installed(monkeypatch):
    """lmms-eval's interface, as if it were installed."""
    parts = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in parts.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    adapter._model_class.cache_clear()
    yield
    adapter._model_class.cache_clear()


@pytest.fixture
def loads(monkeypatch):
    """The arguments of every llavakit.load, which gives a backend that tells what it read."""
    calls = []
    backend = FakeBackend(lambda request: request.messages[-1].text.upper())

    def load(model, **settings):
        calls.append((model, settings))
        return backend

    monkeypatch.setattr(llavakit, "load", load)
    calls.append(backend)
    return calls


def created(arguments="model=demo", **more):
    """A model as lmms-eval makes it: from its manifest, with the settings of its command line."""
    path, _, name = adapter.manifest().chat_class_path.rpartition(".")
    kind = getattr(importlib.import_module(path), name)
    assert issubclass(kind, lmms) and kind.is_simple is False
    return kind.create_from_arg_string(
        arguments, {"batch_size": 1, "max_batch_size": None, "device": None, **more}
    )


def ask(model, documents, to_messages, settings=None):
    model.task_dict = {"task": {"test": documents}}
    settings = {"max_new_tokens": 16} if settings is None else settings
    return [
        Instance(("context", to_messages, settings, number, "task", "test"))
        for number in range(len(documents))
    ]


def plain(document):
    return [{"role": "user", "content": [{"type": "text", "text": document}]}]


def about_colour(document):
    shape, colour = document
    picture = {"type": "image", "url": draw(shape, colour)}
    text = {"type": "text", "text": f"What colour is the {shape}?"}
    return [{"role": "user", "content": [picture, text]}]


def test_without_lmms_eval_the_module_is_light_and_the_class_says_what_is_missing():
    if importlib.util.find_spec("lmms_eval"):
        pytest.skip("lmms-eval is installed")
    for use in (adapter.manifest, lambda: adapter.LlavaKit):
        with pytest.raises(MissingDependencyError, match="pip install lmms-eval"):
            use()
    with pytest.raises(AttributeError):
        adapter.Other  # noqa: B018


def test_the_demo_model_answers_lmms_evals_documents(installed, demo_backend):
    model = created(device="cpu")
    requests = ask(model, list(SCENES.values()) * 3, about_colour)
    assert model.generate_until(requests) == [colour for _, colour in SCENES.values()] * 3
    assert model.cache_hook.partial[1] == (
        "generate_until", ("context", {"max_new_tokens": 16}), "blue",
    )  # fmt: skip


def test_settings_of_lmms_evals_command_line_reach_load(installed, loads):
    assert created("model=x/y,conv_mode=vicuna_v1", device="cuda:0").window is None
    assert created("model=y,base_url=http://host/v1", batch_size="96").window == 96
    assert loads[1:] == [
        ("x/y", {"conv_mode": "vicuna_v1", "device": "cuda:0"}),
        ("y", {"base_url": "http://host/v1"}),
    ]


def test_settings_of_a_task_reach_the_model(installed, loads):
    model = created()
    settings = {
        "max_new_tokens": 7, "temperature": 0.7, "top_p": 0.9, "num_beams": 1, "until": ["\n\n"],
    }  # fmt: skip
    model.generate_until(ask(model, ["a"], plain, settings))
    model.generate_until(ask(model, ["a"], plain, {**settings, "do_sample": False}))
    model.generate_until(ask(model, ["a"], plain, {}))
    sampled, greedy, default = [request.params for request in loads[0].requests]
    assert sampled == SamplingParams(7, temperature=0.7, top_p=0.9, stop=("\n\n",))
    assert greedy == SamplingParams(7, temperature=0, top_p=0.9, stop=("\n\n",))
    assert default == SamplingParams(1024, temperature=0)


@pytest.mark.parametrize(
    ("settings", "told"), [({"num_beams": 5}, "beam search"), ({"typical_p": 0.5}, "'typical_p'")]
)
def test_settings_that_would_change_answers_are_not_dropped(installed, loads, settings, told):
    model = created()
    with pytest.raises(ParameterError, match=told):
        model.generate_until(ask(model, ["a"], plain, settings))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_video_and_audio_are_refused(installed, loads, kind):
    model = created()

    def to_messages(document):
        return [{"role": "user", "content": [{"type": kind, "url": "x"}]}]

    with pytest.raises(UnsupportedContentError, match=kind):
        model.generate_until(ask(model, ["a"], to_messages))


def test_rounds_go_on_until_the_task_ends_them(installed, loads):
    def to_messages(document, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return plain(document)
        if len(previous_output[-1]) > 3:
            return None, True, previous_output, previous_round_info
        info = (previous_round_info or 0) + 1
        return plain(previous_output[-1] + str(info)), False, previous_output, info

    model = created()
    requests = ask(model, ["abc", "b", "long enough"], to_messages)
    assert model.generate_until_multi_round(requests) == [
        ["ABC", "ABC1"], ["B", "B1", "B12", "B123"], ["LONG ENOUGH"],
    ]  # fmt: skip


def test_a_task_without_rounds_has_one_and_one_without_an_end_is_told(installed, loads):
    model = created()
    requests = ask(model, ["a"], lambda document, **round_settings: plain(document))
    assert model.generate_until_multi_round(requests) == [["A"]]

    def endless(document, round_idx=None, **more):
        return plain(document) if round_idx is None else (plain("again"), False, None, None)

    with pytest.raises(ParameterError, match="not over after 64 rounds"):
        model.generate_until_multi_round(ask(model, ["a"], endless))


def test_log_likelihoods_are_refused_in_one_sentence(installed, loads):
    model = created()
    with pytest.raises(UnsupportedContentError, match="output_type is generate_until"):
        model.loglikelihood(ask(model, ["a"], plain))


def test_several_processes_would_repeat_the_work_and_are_refused(installed, loads, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParameterError, match="one process"):
        created()
