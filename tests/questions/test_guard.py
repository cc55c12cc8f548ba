"""What a model may not name: nothing is opened, nothing is sent, and the agent is told why."""

import os

import pytest

from llavakit import langchain, llama_index
from llavakit.sources import SourcePolicy
from llavakit.sources import fetch as _fetch
from llavakit.testing import FakeBackend
from tests.loopback import LOCAL, PNG, Server, redirect
from tests.test_fetch_guard import PRIVATE, resolver

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(30)]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


class Asked:
    """One of the two tools, and the model that would look at the image."""

    def __init__(self, framework: str) -> None:
        self.framework = framework

    def __call__(self, image: str, **settings: object) -> tuple[bool, str, FakeBackend]:
        """Whether the question was refused, what the agent is told, and the model's backend."""
        policy = settings.pop("policy", SourcePolicy(timeout=5))
        eyes = FakeBackend(["a secret"], policy=policy)
        if self.framework == "langchain":
            tool = langchain.ImageQuestionTool(backend=eyes, **settings)
            arguments = {"question": "What is it?", "image": image}
            call = {"name": tool.name, "args": arguments, "id": "1", "type": "tool_call"}
            told = tool.invoke(call)
            return told.status == "error", told.content, eyes
        told = llama_index.ImageQuestionTool(backend=eyes, **settings)(
            question="What is it?", image=image
        )
        return told.is_error, told.content, eyes


@pytest.fixture(params=["langchain", "llama_index"])
def ask(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def refused(asked: tuple[bool, str, FakeBackend]) -> str:
    error, told, eyes = asked
    assert error and not eyes.requests
    return told


def test_without_permission_no_address_is_opened(ask, server):
    for host in ("127.0.0.1", "localhost", "pictures.example.com"):
        told = refused(ask(server.url(host=host), policy=LOCAL))
        assert "may not be opened" in told
    assert server.connections == 0


def test_with_permission_an_address_that_the_policy_allows_is_opened(ask, server):
    error, told, eyes = ask(server.url(), allow_urls=True, policy=LOCAL)
    assert not error and told == '"a secret"'
    assert server.connections == 1 and len(eyes.requests) == 1


@pytest.mark.parametrize("host", PRIVATE.values(), ids=PRIVATE)
def test_private_hosts_are_refused_in_every_spelling_with_urls_allowed(ask, server, host):
    told = refused(ask(server.url(host=host), allow_urls=True))
    assert server.connections == 0
    assert "no image that may be opened" in told


@pytest.mark.parametrize("allowed", [True, False])
def test_a_name_that_leads_home_is_refused_and_its_address_not_told(
    ask, server, monkeypatch, allowed
):
    asked = resolver(monkeypatch, ["127.0.0.1"])
    told = refused(ask(server.url(host="pictures.example.com"), allow_urls=allowed))
    assert server.connections == 0 and "127.0.0.1" not in told
    assert bool(asked) is allowed  # without permission, not even the resolver is asked


def test_private_hosts_and_hosts_that_do_not_exist_are_told_alike(ask, server, monkeypatch):
    url = server.url(host="intranet.example.com")
    resolver(monkeypatch, ["10.0.0.7"])
    private = refused(ask(url, allow_urls=True))
    assert "10.0.0.7" not in private

    def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    monkeypatch.setattr(_fetch, "_resolve", unknown)
    assert refused(ask(url, allow_urls=True)) == private


def test_a_redirect_to_a_private_host_is_not_followed(ask, server, monkeypatch):
    inner = Server()
    try:
        server.answer = redirect(inner.url())
        public = iter([True, False])  # the first address passes for a public one
        monkeypatch.setattr(_fetch, "is_public", lambda address: next(public))
        resolver(monkeypatch, ["127.0.0.1"])
        refused(ask(server.url(host="public.example.com"), allow_urls=True))
        assert server.connections == 1 and inner.connections == 0
    finally:
        inner.close()


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "FILE:/etc/hostname",
        "file://localhost/etc/hostname",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1:{port}/x",
        "http://user:secret@127.0.0.1:{port}/",
        "http://example.com@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "//127.0.0.1:{port}/x.png",
        "\\\\127.0.0.1\\share\\x.png",
        "http:127.0.0.1:{port}/x.png",
        "http:///127.0.0.1:{port}/x.png",
    ],
)
def test_other_schemes_and_tricky_addresses_send_nothing(ask, server, tmp_path, address):
    address = address.replace("{port}", str(server.port))
    refused(ask(address, allow_urls=True, roots=[tmp_path]))
    assert server.connections == 0


@pytest.fixture
def root(tmp_path):
    """An open folder with an image, and a secret image in a folder beside it."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "rooted").mkdir()
    for name in ("root/red.png", "root/sub/red.png", "rooted/secret.png"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path / "root"


def test_a_file_below_an_open_folder_is_looked_at(ask, root):
    for name in ("red.png", "sub/red.png", "sub/../red.png", str(root / "red.png"), " 'red.png' "):
        error, _, eyes = ask(name, roots=[root])
        assert not error and len(eyes.requests) == 1
    assert not ask("red.png", roots=[root / "sub", root])[0]


def test_no_file_is_open_by_default(ask, root, monkeypatch):
    monkeypatch.chdir(root)
    for name in ("red.png", "./red.png", str(root / "red.png"), (root / "red.png").as_uri()):
        assert "No image can be named." in refused(ask(name))


@posix
@pytest.mark.parametrize(
    "name",
    [
        "../rooted/secret.png",
        "sub/../../rooted/secret.png",
        "{parent}/rooted/secret.png",
        "{parent}/root/../rooted/secret.png",
        "link.png",
        "folder/secret.png",
        "relative.png",
        "zero.png",
        "pipe.png",
        "loop.png",
        "sub",
        ".",
        "",
        "/",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "file://{parent}/rooted/secret.png",
        "file://{parent}/root/red.png",
        "red.png\0",
        "~/x.png",
        "x" * 2000,
        "../" * 600 + "etc/hostname",
        "%2e%2e/rooted/secret.png",
    ],
)
def test_nothing_outside_is_opened_whatever_leads_there(ask, root, name):
    secret = root.parent / "rooted" / "secret.png"
    (root / "link.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "relative.png").symlink_to("../rooted/secret.png")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    told = refused(ask(name.replace("{parent}", str(root.parent)), roots=[root]))
    # Where the folders lie is told to nobody who does not know it.
    assert "{parent}" in name or str(root.parent) not in told


@posix
def test_outside_what_is_there_and_what_is_not_are_told_alike(ask, root):
    there = refused(ask("../rooted/secret.png", roots=[root]))
    missing = refused(ask("../rooted/missing.png", roots=[root]))
    assert there.replace("secret", "missing") == missing


@posix
def test_devices_and_kernel_files_are_refused_even_below_an_open_folder(ask):
    for name in ("/dev/zero", "dev/zero", "/proc/self/environ", "proc/self/mem"):
        refused(ask(name, roots=["/"]))


def test_a_picture_written_out_is_refused_before_it_is_decoded(ask, root):
    data = "data:image/png;base64,iVBORw0KGgo="
    for image in (data, f" {data}", data.upper(), "iVBORw0KGgoAAAANSUhEUg" * 200):
        told = refused(ask(image, roots=[root], allow_urls=True))
        assert "must be a name" in told and len(told) < 400


def test_short_base64_is_a_name_like_any_other(ask):
    assert "There is no image" in refused(ask("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"))


def test_what_the_source_policy_forbids_cannot_be_opened_by_the_tool(root, tmp_path):
    for settings, policy in [
        ({"roots": [root]}, SourcePolicy(allow_files=False)),
        ({"roots": [root]}, SourcePolicy(roots=[tmp_path / "rooted"])),
        ({"roots": [root / ".." / "root"]}, SourcePolicy(roots=[root / "sub"])),
        ({"allow_urls": True}, SourcePolicy(allow_urls=False)),
    ]:
        for framework in (langchain, llama_index):
            with pytest.raises(ValueError, match="source policy"):
                framework.ImageQuestionTool(model="demo", source_policy=policy, **settings)
    inside = SourcePolicy(roots=[tmp_path])
    langchain.ImageQuestionTool(model="demo", source_policy=inside, roots=[root])


def test_caps_of_the_source_policy_hold_for_what_is_named(ask, root):
    told = refused(ask("red.png", roots=[root], policy=SourcePolicy(max_bytes=10)))
    assert "10" in told
