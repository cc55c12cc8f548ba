"""An agent that is resumed in other processes keeps its images, bit for bit."""

import base64
import io
import json
import subprocess
import sys

from PIL import Image as PILImage

from llavakit.images import open_picture
from tests.langchain.persistent_agent import PICTURE


def steps(folder, *names):
    """What some steps say, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.langchain.persistent_agent", folder, *names],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def pixels(text):
    return open_picture(PILImage.open(io.BytesIO(base64.b64decode(text)))).digest


def test_checkpoints_history_summaries_and_approvals_keep_the_image(tmp_path):
    shown = open_picture(PICTURE).digest
    looked, interrupted = steps(str(tmp_path), "look", "interrupt")
    assert looked["answer"] == "red" and interrupted["interrupted"]
    approved, asked_again = steps(str(tmp_path), "approve", "ask again")
    assert "42" in approved["answer"] and asked_again["answer"] == "blue"
    for told in (looked, interrupted, approved, asked_again):
        assert told["kept"] == told["recorded"] == looked["kept"]
        assert [pixels(one) for one in told["kept"]] == [shown]
