import base64
import io

import pytest
from PIL import Image as PILImage

from llavakit.images import open_picture


@pytest.fixture(autouse=True, scope="module")
def _one_model_for_all(shared_demo):
    """Nothing is loaded where nothing is asked."""


@pytest.fixture
def pil():
    """An image of four different quarters, so that no turn or flip looks the same."""
    image = PILImage.new("RGB", (8, 6), "red")
    image.paste("blue", (4, 0, 8, 3))
    image.paste("green", (0, 3, 4, 6))
    image.paste("white", (4, 3, 8, 6))
    return image


@pytest.fixture
def png(pil):
    buffer = io.BytesIO()
    pil.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def b64(png):
    return base64.b64encode(png).decode()


@pytest.fixture
def digest(png):
    return open_picture(png).digest


@pytest.fixture
def other_png():
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 6), "yellow").save(buffer, "PNG")
    return buffer.getvalue()
