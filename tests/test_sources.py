"""Sources without a network: what a string means, which files may be read, what is refused."""

import base64
import io
import math
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from llavakit.errors import (
    ImageTooLargeError,
    ParameterError,
    SourceError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy, read_file, read_source

pytestmark = pytest.mark.timeout(20)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(out, "PNG")
    return out.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one image in it, and a secret image beside it."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "red.png").write_bytes(PNG)
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted" / "secret.png").write_bytes(png("blue"))
    return tmp_path / "root"


@pytest.mark.parametrize(
    "setting",
    [
        {"allow_files": "no"},
        {"allow_urls": 0},
        {"allow_private_hosts": None},
        {"roots": [5]},
        {"max_bytes": "64 MB"},
        {"timeout": math.nan},
    ],
    ids=str,
)
def test_a_policy_that_means_something_else_is_refused(setting):
    with pytest.raises(ParameterError, match=f"^{next(iter(setting))} is "):
        SourcePolicy(**setting)


def test_below_a_root_paths_and_file_urls_are_read(root):
    policy = SourcePolicy(roots=(root,))
    for source in (root / "red.png", str(root / "red.png"), (root / "red.png").as_uri()):
        assert read_source(source, policy) == PNG
    assert read_source(root / ".." / "root" / "red.png", policy) == PNG
    assert read_source((root / "red.png").as_uri(), policy, from_url_field=True) == PNG


def test_a_root_may_itself_be_a_symbolic_link_or_relative(root, monkeypatch):
    link = root.parent / "link"
    link.symlink_to(root)
    assert read_file(link / "red.png", SourcePolicy(roots=(link,))) == PNG
    monkeypatch.chdir(root.parent)
    policy = SourcePolicy(roots="root")
    monkeypatch.chdir("/")
    assert policy.roots == (root,) and read_file(root / "red.png", policy) == PNG


def outside(root: Path) -> dict[str, object]:
    secret = root.parent / "rooted" / "secret.png"
    (root / "link.png").symlink_to(secret)
    (root / "dir").symlink_to(secret.parent)
    (root / "loop.png").symlink_to(root / "loop.png")
    return {
        "another directory": secret,
        "dots": root / ".." / "rooted" / "secret.png",
        "dots in a string": f"{root}/../rooted/secret.png",
        "link": root / "link.png",
        "link to a directory": root / "dir" / "secret.png",
        "file url": secret.as_uri(),
        "file url with dots": f"{root.as_uri()}/../rooted/secret.png",
        "file url with encoded dots": f"{root.as_uri()}/%2e%2e/rooted/secret.png",
        "no such file": root.parent / "nothing.png",
        "root's parent": root.parent,
        "environment": "/proc/self/environ",
        "descriptor": "/proc/self/fd/0",
        "device": "/dev/zero",
        "remote file url": "file://example.com/etc/passwd",
    }


@posix
def test_nothing_outside_the_roots_is_read(root):
    for name, source in outside(root).items():
        with pytest.raises(SourceNotAllowedError):
            open_picture(source, SourcePolicy(roots=(root,)))
            pytest.fail(name)
    with pytest.raises(SourceNotAllowedError):
        read_file(root / "red.png", SourcePolicy(roots=()))


@posix
def test_a_file_swapped_for_a_link_while_it_is_opened_is_refused(root, monkeypatch):
    path, secret = root / "red.png", root.parent / "rooted" / "secret.png"
    really_open = os.open

    def swap_then_open(name, flags, *rest, **options):
        if name == path:
            path.unlink()
            path.symlink_to(secret)
        return really_open(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(SourceNotAllowedError):
        read_file(path, SourcePolicy(roots=(root,)))


def test_without_proc_a_swapped_file_is_still_noticed(root, monkeypatch):
    path, other = root / "red.png", root / "other.png"
    other.write_bytes(png("green"))

    def no_proc(self):
        other.replace(path)
        raise OSError

    monkeypatch.setattr(Path, "readlink", no_proc)
    with pytest.raises(SourceFetchError, match="replaced"):
        read_file(path, SourcePolicy())
    other.write_bytes(PNG)
    monkeypatch.setattr(Path, "readlink", lambda self: (_ for _ in ()).throw(OSError()))
    assert read_file(other, SourcePolicy(roots=(root,))) == PNG


@posix
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/random", "/proc/kmsg", "/tmp"])
def test_devices_kernel_files_and_directories_are_refused_at_once(path):
    started = time.monotonic()
    with pytest.raises(SourceNotAllowedError):
        read_file(path, SourcePolicy())
    assert time.monotonic() - started < 5


@posix
def test_pipes_and_sockets_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceNotAllowedError, match="pipe"):
        read_file(tmp_path / "pipe", SourcePolicy())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(SourceNotAllowedError, match="socket"):
            read_file(tmp_path / "s", SourcePolicy())


@posix
def test_a_file_swapped_for_a_pipe_while_it_is_opened_does_not_block(root, monkeypatch):
    path = root / "red.png"
    really_open = os.open

    def swap_then_open(name, flags, *rest, **options):
        if name == path:
            path.unlink()
            os.mkfifo(path)
        return really_open(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(SourceNotAllowedError, match="pipe"):
        read_file(path, SourcePolicy())


def test_the_byte_cap_holds_for_large_sparse_and_growing_files(tmp_path, monkeypatch):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageTooLargeError, match="max_bytes"):
        read_file(path, SourcePolicy())
    path.write_bytes(b"abc")
    monkeypatch.setattr(os, "read", lambda descriptor, n: b"x" * n)
    with pytest.raises(ImageTooLargeError):
        read_file(path, SourcePolicy(max_bytes=10**7))


ODD_STRINGS = {
    "no-such-file": "nothing/here.png",
    "empty": "",
    "blank": "  ",
    "nul": "a\0b.png",
    "overlong-name": "x" * 300 + ".png",
    "overlong-path": "x/" * 40_000,
    "file-url-of-nothing": "file:///nothing/here.png",
    "file-url-with-nul": "file:///a%00b.png",
    "file-url-with-query": "file:///tmp/a.png?b",
    "file-as-directory": __file__ + "/x.png",
    "lone-surrogate": "\ud800.png",
    "broken-url": "file://[bad/x.png",
    "windows-path": "C:\\pictures\\cat.png",
    "short-base64-of-nothing": "AAAAAAAAAAAAAAAAAAAA",
    "long-base64-of-nothing": "A" * 5000,
    "path-that-is-base64-too": "/word/pictures/cats",
    "sentence": "What is in the picture?",
}


@pytest.mark.parametrize("source", ODD_STRINGS.values(), ids=ODD_STRINGS)
def test_strings_that_lead_nowhere_are_not_found(source):
    with pytest.raises(SourceNotFoundError) as caught:
        open_picture(source)
    assert len(str(caught.value)) < 260 and str(caught.value).endswith(".")


def test_the_sentence_says_what_was_tried():
    with pytest.raises(SourceNotFoundError, match=r"'cat\.png' is neither an existing file, nor"):
        open_picture("cat.png")


@pytest.mark.parametrize("source", ["s3://b/k.png", "ftp://h/x", "gopher://h/", "blob://x"])
def test_other_schemes_are_not_opened(source):
    with pytest.raises(SourceNotAllowedError, match="pass its bytes"):
        open_picture(source)


def test_an_existing_file_wins_over_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = BASE64[:64].replace("/", "_")
    assert len(name) == 64
    with pytest.raises(SourceError):
        open_picture(name + ".nothing")
    (tmp_path / name).write_bytes(png("blue"))
    assert open_picture(name) == open_picture(png("blue"))
    assert open_picture(BASE64) == open_picture(PNG)


@pytest.mark.parametrize("form", ["{path}", "{uri}", "./red.png", "//host/red.png", "red.png", ""])
def test_a_url_field_never_leads_to_a_file(root, form, monkeypatch):
    monkeypatch.chdir(root)
    source = form.format(path=root / "red.png", uri=(root / "red.png").as_uri())
    with pytest.raises(SourceNotAllowedError):
        read_source(source, SourcePolicy(), from_url_field=True)


def test_a_url_field_takes_data_urls_and_base64():
    for source in (f"data:image/png;base64,{BASE64}", BASE64):
        assert read_source(source, SourcePolicy(), from_url_field=True) == PNG
    with pytest.raises(SourceNotAllowedError, match="not the base64 of an image"):
        read_source("A" * 5000, SourcePolicy(), from_url_field=True)


def test_policies_switch_files_and_urls_off(root):
    policy = SourcePolicy(allow_files=False, allow_urls=False)
    for source in (root / "red.png", str(root / "red.png"), (root / "red.png").as_uri(), "x.png"):
        with pytest.raises(SourceNotAllowedError, match="allow_files"):
            read_source(source, policy)
    with pytest.raises(SourceNotAllowedError, match="allow_urls"):
        read_source("http://example.com/x.png", policy)
    assert read_source(BASE64, policy) == PNG and read_source(PNG, policy) == PNG


def test_errors_never_show_payloads_credentials_or_tokens():
    sources = (
        "https://user:hunter2@example.com/x.png?token=hunter2",
        "data:image/png;base64,hunter2hunter2!",
        "hunter2" * 1000,
        "s3://key:hunter2@bucket/x?hunter2",
    )
    for source in sources:
        with pytest.raises((SourceError, ValueError)) as caught:
            open_picture(source, SourcePolicy(allow_urls=False))
        assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_say_so(tmp_path):
    (tmp_path / "x").write_bytes(PNG)
    (tmp_path / "x").chmod(0)
    with pytest.raises(SourceFetchError, match="permissions"):
        read_file(tmp_path / "x", SourcePolicy())


def test_no_descriptor_leaks_from_refused_files(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for _ in range(20):
        with pytest.raises(ImageTooLargeError):
            read_file(tmp_path / "x", SourcePolicy(max_bytes=10))
    if before:
        assert len(list(descriptors.iterdir())) == before


@pytest.mark.parametrize(
    "arguments",
    [{"max_bytes": 0}, {"max_pixels": -1}, {"timeout": 0}, {"max_side": 0}, {"max_redirects": -1}],
)
def test_policies_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ParameterError):
        SourcePolicy(**arguments)


def test_policies_are_values(tmp_path):
    assert SourcePolicy(roots=[str(tmp_path)]) == SourcePolicy(roots=(tmp_path,))
    assert hash(SourcePolicy(roots=(tmp_path,))) == hash(SourcePolicy(roots=tmp_path))


def test_many_threads_open_pictures_at_once(root):
    found: list[str] = []

    def work() -> None:
        found.extend(open_picture(root / "red.png").digest for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and len(set(found)) == 1
