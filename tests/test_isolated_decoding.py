"""Large images are decoded in processes that can be ended, with other threads running."""

import io
import os
import signal
import sys
import threading
import time

import pytest
from PIL import Image, features

from llavakit.errors import (
    ImageDecodeError,
    ImageTooLargeError,
    InputError,
    RequestCancelledError,
    UnsupportedImageError,
)
from llavakit.images import isolated, open_picture, peek_cost
from llavakit.images.isolated import Decoders
from llavakit.questions.opening import open_named
from llavakit.sources import SourcePolicy
from llavakit.values import Image as LlavaImage
from llavakit.values import Message
from llavakit.web.pictures import naming, prepared, shown_picture
from llavakit.web.settings import WebSettings

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]
POLICY = SourcePolicy(max_pixels=10_000_000)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(side, mode="RGB"):
    return Image.effect_noise((side, side - 3), 60).convert(mode)


@pytest.fixture(scope="module")
def slow():
    """A JPEG 2000 that takes some 0.3 s, in which its decoder keeps the interpreter."""
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    image = noise(400).resize((1500, 1500))
    return encoded(image, "JPEG2000", quality_mode="rates", quality_layers=[30])


@pytest.fixture(scope="module")
def shared():
    decoders = Decoders()
    yield decoders
    decoders.close()


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started."""
    started = []
    start = isolated.subprocess.Popen

    def popen(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    monkeypatch.setattr(isolated.subprocess, "Popen", popen)
    return started


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_pixels_are_those_of_open_picture(shared, form, mode):
    try:
        data = encoded(noise(60, mode), form)
    except (OSError, KeyError):
        pytest.skip(f"no {form} of {mode}")
    assert shared.open(data, POLICY) == open_picture(data, POLICY)


def test_an_image_on_its_side_is_turned_there_too(shared):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(60), "JPEG", exif=exif)
    assert shared.open(data, POLICY).size == open_picture(data, POLICY).size == (57, 60)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(noise(60), "PNG")[:-100], ImageDecodeError),
        (b"", ImageDecodeError),
        (b"%PDF-1.4 and more", UnsupportedImageError),
        (encoded(Image.new("1", (4000, 4000)), "PNG"), ImageTooLargeError),
    ],
    ids=["truncated", "empty", "pdf", "large"],
)
def test_errors_are_those_of_open_picture(shared, data, kind):
    with pytest.raises(kind) as here:
        open_picture(data, POLICY)
    with pytest.raises(kind) as there:
        shared.open(data, POLICY)
    assert str(there.value) == str(here.value) and there.value.public == here.value.public
    assert shared.open(encoded(noise(60), "PNG"), POLICY).size == (60, 57)


def test_other_threads_run_meanwhile(shared, slow):
    shared.open(encoded(noise(60), "PNG"), POLICY)  # it has started
    ticks, over = 0, threading.Event()

    def tick():
        nonlocal ticks
        while not over.wait(0.01):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        shared.open(slow, POLICY)
    finally:
        over.set()
        thread.join()
    assert ticks > 5


def test_an_image_that_takes_too_long_ends_its_process_and_no_other_image(slow, processes):
    decoders = Decoders(seconds=0.1)
    with pytest.raises(ImageTooLargeError, match=r"more than 0\.1 seconds to decode"):
        decoders.open(slow, POLICY)
    assert processes[0].poll() is not None
    assert decoders.open(encoded(noise(60), "PNG"), POLICY).size == (60, 57)
    decoders.close()
    assert processes[1].poll() is not None


@pytest.mark.parametrize(
    ("number", "times", "error"),
    [
        (signal.SIGKILL, 1, None),
        (signal.SIGTERM, 1, None),
        (signal.SIGKILL, 2, ImageTooLargeError),
        (signal.SIGSEGV, 1, ImageDecodeError),
    ],
    ids=["killed", "terminated", "killed-twice", "crashed"],
)
def test_a_process_that_ends_while_it_decodes(monkeypatch, processes, number, times, error):
    exchange, left = isolated._DecodeProcess._exchange, [number] * times

    def exchanged(worker, request, data):
        if left:
            os.kill(processes[-1].pid, left.pop())
            processes[-1].wait(10)
        return exchange(worker, request, data)

    monkeypatch.setattr(isolated._DecodeProcess, "_exchange", exchanged)
    decoders, small = Decoders(), encoded(noise(60), "PNG")
    if error is not None:
        with pytest.raises(error):
            decoders.open(small, POLICY)
    assert decoders.open(small, POLICY).size == (60, 57)
    decoders.close()


def test_one_that_ended_while_idle_is_replaced_and_all_end_at_the_close(processes):
    decoders, small = Decoders(), encoded(noise(60), "PNG")
    decoders.open(small, POLICY)
    decoders.open(small, POLICY)
    assert len(processes) == 1
    processes[0].kill()
    processes[0].wait(10)
    assert decoders.open(small, POLICY).size == (60, 57)
    assert len(processes) == 2
    decoders.close()
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(RequestCancelledError):
        decoders.open(small, POLICY)


def test_what_is_dropped_without_a_close_leaves_no_process(processes):
    Decoders().open(encoded(noise(60), "PNG"), POLICY)
    end = time.monotonic() + 10
    while processes[0].poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_slow_formats_cost_more_than_their_pixels():
    costs = {form: peek_cost(encoded(noise(60), form)) for form in ("PNG", "JPEG")}
    assert set(costs.values()) == {60 * 57}
    for form, check in (("JPEG2000", "jpg_2000"), ("AVIF", "avif")):
        if features.check(check):
            assert peek_cost(encoded(noise(60), form)) >= 8 * 60 * 57


HEAVY = encoded(Image.new("RGB", (2100, 2000), "teal"), "PNG")
LIGHT = encoded(noise(60), "PNG")
CALLERS = {
    "anything": lambda data: isolated.open_isolated(data, POLICY),
    "the web page": lambda data: shown_picture(data, "x.png", POLICY).digest,
    "tools that models call": lambda data: open_named(LlavaImage(data), "x.png", POLICY),
}


@pytest.fixture
def fresh(monkeypatch):
    """This process has not decoded in another one yet."""
    monkeypatch.setattr(isolated, "_shared", None)
    yield
    if isolated._shared is not None:
        isolated._shared.decoders.close()


@pytest.mark.parametrize("caller", CALLERS)
def test_every_face_decodes_large_images_in_one_other_process(fresh, processes, caller):
    CALLERS[caller](LIGHT)
    assert processes == []
    CALLERS[caller](HEAVY)
    CALLERS[caller](HEAVY)
    assert len(processes) == 1


def test_the_pixels_of_a_large_image_are_the_same_wherever_it_is_opened(fresh):
    expected = open_picture(HEAVY, POLICY)
    assert isolated.open_isolated(HEAVY, POLICY) == expected
    assert shown_picture(HEAVY, "x.png", POLICY).digest == expected.digest
    with open_named(LlavaImage(HEAVY), "x.png", POLICY) as document:
        assert document.picture(None) == expected


def test_the_model_of_the_page_gets_large_images_as_pixels(fresh, processes):
    small, large = (shown_picture(data, "x.png", POLICY).image for data in (LIGHT, HEAVY))
    question = Message("user", [small, "What?", large])
    answer = Message("assistant", "Teal.")
    asked, same = prepared([question, answer])
    assert asked.content[:2] == question.content[:2] and same == answer
    assert asked.images[1].source == open_picture(HEAVY, POLICY)
    assert len(processes) == 1


@pytest.mark.parametrize("caller", CALLERS)
def test_an_image_that_takes_too_long_is_refused_on_every_face(
    fresh, processes, monkeypatch, slow, caller
):
    isolated._shared = isolated._Shared()
    monkeypatch.setattr(isolated._shared.decoders, "_seconds", 0.02)
    monkeypatch.setattr(isolated, "LIGHT_PIXELS", 0)
    with pytest.raises(ImageTooLargeError, match=r"to decode.*JPEG or PNG"):
        CALLERS[caller](slow)


def test_the_page_says_of_a_slow_image_that_it_is_slow(fresh, monkeypatch, slow):
    isolated._shared = isolated._Shared()
    monkeypatch.setattr(isolated._shared.decoders, "_seconds", 0.02)
    monkeypatch.setattr(isolated, "LIGHT_PIXELS", 0)
    expected = r"x\.jp2: The image takes more than"
    with pytest.raises(InputError, match=expected), naming("x.jp2", WebSettings()):
        shown_picture(slow, "x.jp2", POLICY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_decoders_of_its_own(fresh, processes):
    isolated.open_isolated(HEAVY, POLICY)
    child = os.fork()
    if not child:
        os._exit(0 if isolated._shared is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    isolated.open_isolated(HEAVY, POLICY)
    assert len(processes) == 1
