"""OpenAI's client for Node and the Vercel AI SDK, installed by npm, against the bundled model."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.conftest import data_uri, draw
from tests.serving.test_files import leaves, pdf_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm"),
]
PROGRAMS = Path(__file__).with_name("node")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the programs and what they import."""
    folder = tmp_path_factory.mktemp("node")
    for path in PROGRAMS.iterdir():
        shutil.copy(path, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"npm installs nothing here: {done.stderr[-300:]}")
    return folder


def run(folder, program, served):
    done = subprocess.run(
        ["node", program, f"{served.url}/v1", data_uri(draw("red")), pdf_uri(leaves(2))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_openais_client_for_node(served, installed):
    found = run(installed, "openai_node.js", served)
    assert found.pop("fileTokens") > 2 * 64
    assert found == {
        "chat": "red",
        "chatStream": "red",
        "chatCall": "look",
        "response": "red",
        "responseStream": "red",
        "responseFinal": "red",
        "responseCall": "look",
        "afterCall": "completed",
        "models": ["demo"],
        "refused": [400, "previous_response_id"],
    }


def test_the_vercel_ai_sdk_by_both_notations(served, installed):
    found = run(installed, "ai_sdk.js", served)
    assert set(found) == {"responses", "chat"}
    for answers in found.values():
        assert answers.pop("fileTokens") > 2 * 64 and answers.pop("usage") > 0
        seen = answers.pop("seen")
        assert seen in ({"colour": "red"}, {"colour": "blue"})
        assert answers == {"whole": "red", "streamed": "red", "call": "look", "result": "round"}
