"""What callbacks, traces and the LLM cache see of an image."""

import base64
import json
import os
import warnings

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tracers.context import collect_runs
from PIL import Image as PILImage

from llavakit.errors import UnsupportedContentError
from llavakit.images import open_picture
from llavakit.langchain import ChatLLaVA
from llavakit.langchain.canonical import canonical
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend

POLICY = SourcePolicy()


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.started = []
        self.failed = []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.started.append(messages)

    def on_llm_error(self, error, **kwargs):
        self.failed.append(error)


def picture_answers(request):
    """An answer that depends on the pixels."""
    return open_picture(request.messages[-1].images[0].source).digest[:12]


@pytest.fixture
def cached():
    return ChatLLaVA(backend=FakeBackend(picture_answers), cache=InMemoryCache())


def ask(**fields):
    return [HumanMessage([{"type": "image", **fields}])]


def test_traces_hold_digests_alone_where_that_was_asked_for(pil, digest):
    recorder = Recorder()
    model = ChatLLaVA(backend=FakeBackend(), trace_images="digest")
    model.invoke(ask(image=pil), config={"callbacks": [recorder]})
    (block,) = recorder.started[0][0][0].content
    assert json.loads(dumps(block)) == {"type": "image", "file_id": f"sha256:{digest}"}


@pytest.mark.parametrize("field", ["image", "base64"])
async def test_tracing_takes_every_picture(field, pil, b64):
    value = {"image": pil, "base64": b64}[field]  # base64 without mime_type breaks core's tracing
    model = ChatLLaVA(backend=FakeBackend())
    with collect_runs() as runs:
        model.invoke(ask(**{field: value}))
        list(model.stream(ask(**{field: value})))
        await model.ainvoke(ask(**{field: value}))
    assert len(runs.traced_runs) == 3
    assert all(run.error is None for run in runs.traced_runs)
    assert "PIL" not in str([run.inputs for run in runs.traced_runs])


def test_v3_events_take_pictures(pil):
    model = ChatLLaVA(backend=FakeBackend(["a circle"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v3 is in beta, and says so once
        stream = model.stream_events(ask(image=pil), version="v3")
        assert str(stream.text) == "a circle"


def test_equal_pixels_share_a_cache_key_however_delivered(cached, pil, png, b64, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    for fields in (
        {"image": pil},
        {"image": pil.copy()},
        {"base64": b64},
        {"base64": b64, "mime_type": "image/png", "id": "random"},
        {"url": "data:image/png;base64," + b64},
        {"path": str(path)},
    ):
        cached.invoke(ask(**fields))
    assert len(cached.backend.requests) == 1


def test_different_pictures_never_share_a_key_even_at_one_address(cached):
    for number in range(30):
        # Each is freed before the next is made, so that addresses repeat.
        image = PILImage.new("RGB", (4, 4), (number, 0, 0))
        expected = open_picture(image).digest[:12]
        assert cached.invoke(ask(image=image)).content == expected
        del image


def test_a_file_that_changed_is_another_picture(cached, png, other_png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    first = cached.invoke(ask(path=path)).content
    stamp = path.stat()
    path.write_bytes(other_png)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert cached.invoke(ask(path=path)).content != first


async def test_the_async_cache_sees_digests_too(cached, pil, b64):
    await cached.ainvoke(ask(image=pil))
    await cached.ainvoke(ask(base64=b64))
    await cached.agenerate([ask(image=pil)])
    assert len(cached.backend.requests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"stop": ["x"]},
        {"max_tokens": 3},
        {"seed": 1},
        {"model": "other"},
        {"top_p": 0.3},
        {"output_version": "v1"},
    ],
)
def test_settings_that_change_the_answer_are_in_the_key(change):
    plain = ChatLLaVA(backend=FakeBackend())
    other = ChatLLaVA(backend=FakeBackend(), **change)
    assert plain._get_llm_string() != other._get_llm_string()
    same = ChatLLaVA(backend=FakeBackend())
    assert plain._get_llm_string() == same._get_llm_string()


@pytest.mark.parametrize(
    "change",
    [{"device": "cuda"}, {"quantization": "4bit"}, {"conv_mode": "v1"}, {"dtype": "float16"}],
)
def test_load_settings_are_in_the_key(change):
    plain, other = ChatLLaVA(model="demo"), ChatLLaVA(model="demo", **change)
    assert plain._get_llm_string() != other._get_llm_string()


def test_secrets_are_not_in_the_key():
    assert "hush" not in ChatLLaVA(model="demo", api_key="hush")._get_llm_string()


def test_canonical_is_idempotent_and_changes_nothing_in_place(pil):
    messages = [HumanMessage(["a", {"type": "image", "image": pil}]), AIMessage("b")]
    once = canonical(messages, POLICY, 16)
    twice = canonical(once, POLICY, 16)
    assert messages[0].content[1]["image"] is pil
    assert all(a is b for a, b in zip(once, twice, strict=True))
    assert once[1] is messages[1]


def test_artifacts_of_tools_stay_out_of_the_key(pil):
    message = ToolMessage("seen", tool_call_id="1", artifact=pil)
    (seen,) = canonical([message], POLICY, 16)
    assert seen.artifact is None and message.artifact is pil


def test_a_digest_that_lost_its_picture_is_refused(pil):
    (seen,) = canonical(ask(image=pil), POLICY, 16)
    copied = json.loads(json.dumps(seen.content))
    with pytest.raises(UnsupportedContentError, match="sha256"):
        ChatLLaVA(backend=FakeBackend()).invoke([HumanMessage(copied)])


def test_urls_are_not_fetched_for_a_trace():
    recorder = Recorder()
    url = "https://example.org/a.png"
    ChatLLaVA(backend=FakeBackend()).invoke(ask(url=url), config={"callbacks": [recorder]})
    (block,) = recorder.started[0][0][0].content
    assert block == {"type": "image_url", "image_url": {"url": url}}


def test_what_is_no_picture_is_traced_and_then_refused():
    recorder = Recorder()
    audio = {"type": "audio", "base64": base64.b64encode(b"x").decode(), "mime_type": "audio/wav"}
    with pytest.raises(UnsupportedContentError):
        ChatLLaVA(backend=FakeBackend()).invoke(
            [HumanMessage([audio])], config={"callbacks": [recorder]}
        )
    assert len(recorder.failed) == 1
