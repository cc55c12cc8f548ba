"""The command line of ``llavakit serve``."""

import contextlib

import httpx
import pytest
from typer.testing import CliRunner

import llavakit
from llavakit.cli import serve as command
from llavakit.cli.app import app
from llavakit.cluster.deploy import ClusterSettings
from llavakit.serving import Server
from llavakit.serving.settings import MIB
from llavakit.testing import FakeBackend


@pytest.fixture
def run(monkeypatch):
    """Runs the command up to where it would serve; gives the result, with what it was to serve."""
    served = {}

    def instead(model, load, settings, *rest):
        served.update(model=model, load=load, settings=settings, rest=rest)

    monkeypatch.setattr(command, "_run", instead)

    def invoke(*arguments):
        served.clear()
        result = CliRunner().invoke(app, ["serve", *(str(one) for one in arguments)])
        return result, served

    return invoke


def test_the_defaults_are_safe(run):
    result, served = run("demo")
    settings = served["settings"]
    assert result.exit_code == 0, result.output
    assert served["rest"][:2] == ("127.0.0.1", 8000)
    assert not settings.allow_urls and not settings.policy().allow_files
    assert "localhost" in settings.allowed_hosts
    assert served["load"]["source_policy"] == settings.policy()
    assert served["load"]["max_concurrency"] == "auto"
    assert settings.warm_up is True
    assert result.stderr == ""


def test_options_reach_the_model_and_the_server(run, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k1\nk2\n")
    _, served = run(
        "llava-1.5-7b", "--load-4bit", "--device", "cuda:1", "--max-concurrency", 4,
        "--api-key-file", keys, "--served-model-name", "llava", "--allow-urls",
        "--max-body-mib", 3, "--max-images", 2, "--max-answer-tokens", 99, "--host", "0.0.0.0",
    )  # fmt: skip
    settings, load = served["settings"], served["load"]
    assert (settings.model_name, settings.api_keys) == ("llava", ("k1", "k2"))
    assert (settings.max_body_bytes, settings.max_images) == (3 * MIB, 2)
    assert settings.max_answer_tokens == 99 and settings.allow_urls
    assert settings.allowed_hosts == ()
    assert (load["load_in_4bit"], load["device"], load["max_concurrency"]) == (True, "cuda:1", 4)


@pytest.mark.enable_socket
async def test_a_cluster_asks_for_the_keys_of_the_file(monkeypatch, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k1\nk2\n")
    doors = []

    @contextlib.contextmanager
    def nothing(*arguments):
        yield Living()

    class Door(Server):
        def run(self, sockets):
            doors.append(self.config.app)

    monkeypatch.setattr("llavakit.cluster.deploy.ray_running", nothing)
    monkeypatch.setattr("llavakit.cluster.deploy.deployed", nothing)
    monkeypatch.setattr("llavakit.serving.Server", Door)
    arguments = ["serve", "demo", "--ray", "--port", "0", "--api-key-file", str(keys)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output

    (door,) = doors
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(door), base_url="http://test"
    ) as client:
        for shown, status in [("", 401), ("Bearer k", 401), ("Bearer k1", 200), ("Bearer k2", 200)]:
            answer = await client.get("/metrics", headers={"Authorization": shown})
            assert answer.status_code == status, shown


class Living:
    """Replicas that tell no figures."""

    async def metrics(self):
        return b""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "myhost"])
def test_open_to_others_without_a_key_it_warns(run, host, tmp_path):
    result, served = run("demo", "--host", host)
    assert "anybody who reaches" in result.stderr and "--api-key-file" in result.stderr
    assert served["settings"].allowed_hosts == ()
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    assert run("demo", "--host", host, "--api-key-file", keys)[0].stderr == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_on_loopback_it_does_not_warn(run, host):
    assert run("demo", "--host", host)[0].stderr == ""


def test_a_directory_is_called_by_its_last_part(run, tmp_path):
    (tmp_path / "my-llava").mkdir()
    _, served = run(tmp_path / "my-llava")
    assert served["settings"].model_name == "my-llava"


def test_keys_that_cannot_be_read_are_an_error_and_nothing_is_served(run, tmp_path):
    result, served = run("demo", "--api-key-file", tmp_path / "none")
    assert (result.exit_code, served) == (2, {})
    assert "cannot be read" in result.stderr


def test_warming_up_can_be_switched_off_and_the_model_is_loaded_all_the_same(run):
    _, served = run("demo", "--no-warm-up")
    assert served["settings"].warm_up == "load"


@pytest.mark.parametrize("number", ["0", "-3", "many", "1.5"])
def test_a_number_of_answers_at_once_that_is_none_is_refused(run, number):
    result, served = run("demo", "--max-concurrency", number)
    assert (result.exit_code, served) == (2, {})
    assert "--max-concurrency is" in result.stderr and "or auto" in result.stderr


def test_replicas_whose_concurrency_is_not_known_are_busy_at_32():
    assert ClusterSettings(busy="auto").busy == 32
    assert ClusterSettings(busy=5).busy == 5


@pytest.mark.enable_socket
def test_the_warm_up_is_told_before_it_is_ready(monkeypatch):
    class Warming(FakeBackend):
        def warm_up(self, progress=None):
            for done in (1, 2, 3):
                progress(done, 3, "[a batch]")

    monkeypatch.setattr(llavakit, "load", lambda model, **settings: Warming())
    servers = []
    init = Server.__init__

    def remembered(self, *arguments, **options):
        init(self, *arguments, **options)
        servers.append(self)

    monkeypatch.setattr(Server, "__init__", remembered)
    note = command.note

    def noted(text):
        note(text)
        if text.endswith("is ready"):
            servers[0].should_exit = True

    monkeypatch.setattr(command, "note", noted)
    result = CliRunner().invoke(app, ["serve", "demo", "--port", "0"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "listening" not in line]
    assert lines == [
        "llavakit: warming up, 1 of 3 ([a batch])",
        "llavakit: demo is ready",
    ], "a log is told every ten seconds, at most"


@pytest.mark.enable_socket
def test_a_model_that_cannot_be_loaded_ends_the_command_with_its_reason(monkeypatch):
    class Broken(FakeBackend):
        def submit(self, request):
            raise llavakit.errors.CheckpointError("The weights are broken.")

    backend = Broken()
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: backend)
    result = CliRunner().invoke(app, ["serve", "demo", "--port", "0"])
    assert result.exit_code == 1
    assert "llavakit: The weights are broken." in result.stderr
    assert backend.closed


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("llavakit.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = CliRunner().invoke(app, ["serve", "demo"])
    assert result.exit_code == 1
    assert 'pip install "llavakit[serve]"' in result.stderr
