import io

import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

import llavakit
from llavakit.cli.app import app
from llavakit.testing import FakeBackend


@pytest.fixture
def fake():
    return FakeBackend(["a red circle"])


@pytest.fixture
def loads(monkeypatch, fake):
    """The arguments of every llavakit.load, which gives the fake."""
    calls = []

    def load(model, **settings):
        calls.append((model, settings))
        return fake

    monkeypatch.setattr(llavakit, "load", load)
    return calls


@pytest.fixture
def run(loads):
    """Runs a command; gives its result."""

    def invoke(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)

    return invoke


def draw(colour, size=(8, 6)):
    return PILImage.new("RGB", size, colour)


def png_bytes(colour="red"):
    buffer = io.BytesIO()
    draw(colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(png_bytes("red"))
    return path


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "blue.png"
    path.write_bytes(png_bytes("blue"))
    return path


@pytest.fixture
def pdf(tmp_path):
    """A document of a red, a green and a blue page."""
    path = tmp_path / "three.pdf"
    first, *rest = [draw(colour, (60, 40)) for colour in ("red", "green", "blue")]
    first.save(path, "PDF", save_all=True, append_images=rest)
    return path
