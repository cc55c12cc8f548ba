"""Who may be fetched from: nothing is sent to a private address, whatever leads there."""

import shutil
import socket
import ssl
import subprocess

import pytest

from llavakit.errors import (
    SourceError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy, fetch_url
from llavakit.sources import fetch as _fetch
from llavakit.sources.fetch import is_public
from tests.loopback import LOCAL, PNG, Server, redirect

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(30)]


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Puts answers in the resolver's place, the last for ever; returns the names asked."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(_fetch, "_resolve", resolve)
    return asked


def test_a_picture_by_http_has_the_digest_of_its_bytes(server):
    assert open_picture(server.url(), LOCAL) == open_picture(PNG)
    assert open_picture(server.url(), LOCAL, from_url_field=True) == open_picture(PNG)
    assert open_picture(f" HTTP://LOCALHOST:{server.port}/x.png#part ", LOCAL).size == (2, 2)


def test_requests_carry_nothing_personal(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    fetch_url(server.url("/a%20b?c=d"), LOCAL)
    lines = server.requests[0].split("\r\n")
    assert lines[0] == "GET /a%20b?c=d HTTP/1.1" and f"Host: 127.0.0.1:{server.port}" in lines
    names = {line.partition(":")[0].lower() for line in lines[1:] if line}
    assert names == {"host", "accept", "accept-encoding", "user-agent", "connection"}


PRIVATE = {
    "loopback": "127.0.0.1",
    "loopback-name": "localhost",
    "loopback-far-end": "127.255.255.254",
    "decimal": "2130706433",
    "hex": "0x7f000001",
    "dotted-hex": "0x7f.0.0.1",
    "octal": "017700000001",
    "dotted-octal": "0177.0.0.1",
    "short": "127.1",
    "zero": "0",
    "unspecified": "0.0.0.0",
    "full-width-digits": "１２７.0.0.1",
    "v6-loopback": "[::1]",
    "v6-unspecified": "[::]",
    "v4-mapped": "[::ffff:127.0.0.1]",
    "v4-mapped-hex": "[::ffff:7f00:1]",
    "v4-compatible": "[::127.0.0.1]",
    "nat64": "[64:ff9b::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "metadata": "169.254.169.254",
    "metadata-v6": "[fd00:ec2::254]",
    "private-10": "10.0.0.1",
    "private-172": "172.16.0.1",
    "private-192": "192.168.1.1",
    "carrier-grade-nat": "100.64.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "azure": "168.63.129.16",
}


@pytest.mark.parametrize("host", PRIVATE.values(), ids=PRIVATE)
def test_private_hosts_are_refused_in_every_spelling_and_nothing_is_sent(server, host):
    with pytest.raises((SourceNotAllowedError, SourceNotFoundError)):
        fetch_url(server.url(host=host), SourcePolicy(timeout=5))
    assert server.connections == 0


def test_a_v6_loopback_listener_sees_nothing():
    try:
        server = Server("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        for host in ("[::1]", "localhost"):
            with pytest.raises(SourceNotAllowedError):
                fetch_url(server.url(host=host), SourcePolicy())
        assert server.connections == 0
        assert fetch_url(server.url(host="[::1]"), LOCAL) == PNG
    finally:
        server.close()


@pytest.mark.parametrize(
    "address, public",
    [
        *((a.strip("[]"), False) for a in PRIVATE.values() if a.count(".") == 3 and a[1] != "x"
          and a[:2] != "01" and a.isascii()),
        *((a, False) for a in ("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff0e::1")),
        *((a, False) for a in ("2001::1", "2001:db8::1", "fec0::1", "64:ff9b:1::1", "192.0.0.192")),
        *((a, False) for a in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "::8.8.8.8")),
        *((a, False) for a in ("100.100.100.200", "192.168.0.1", "172.31.255.255")),
        *((a, True) for a in ("8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2001:4860::8888")),
        *((a, True) for a in ("::ffff:8.8.8.8", "64:ff9b::808:808")),
    ],
)  # fmt: skip
def test_public_and_private_addresses(address, public):
    assert is_public(address) is public


def test_a_name_that_leads_home_is_refused(server, monkeypatch):
    resolver(monkeypatch, ["127.0.0.1"])
    with pytest.raises(SourceNotAllowedError, match=r"at 127\.0\.0\.1"):
        fetch_url(server.url(host="pictures.example.com"), SourcePolicy())
    resolver(monkeypatch, ["93.184.216.34", "127.0.0.1"])  # one bad address spoils the name
    with pytest.raises(SourceNotAllowedError):
        fetch_url(server.url(host="pictures.example.com"), SourcePolicy())
    assert server.connections == 0


def test_a_name_is_resolved_once_so_rebinding_has_no_second_answer(server, monkeypatch):
    asked = resolver(monkeypatch, ["192.0.2.1"], ["127.0.0.1"])  # the first is nowhere
    monkeypatch.setattr(_fetch, "is_public", lambda address: address == "192.0.2.1")
    with pytest.raises(SourceFetchError):
        fetch_url(server.url(host="rebinding.example.com"), SourcePolicy(timeout=0.5))
    assert asked == ["rebinding.example.com"] and server.connections == 0


def test_the_connection_goes_to_the_checked_address_and_names_the_host(server, monkeypatch):
    resolver(monkeypatch, ["127.0.0.1"])
    assert fetch_url(server.url(host="pictures.example.com"), LOCAL) == PNG
    assert f"Host: pictures.example.com:{server.port}" in server.requests[0]


def test_the_next_address_is_tried_when_one_does_not_answer(server, monkeypatch):
    resolver(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    assert fetch_url(server.url(host="two.example.com"), LOCAL) == PNG


def test_redirects_are_followed_within_the_limit(server):
    server.answer = redirect("/a", "b?c", server.url("/d", host="localhost"))
    assert fetch_url(server.url(), LOCAL) == PNG
    assert [r.split()[1] for r in server.requests] == ["/x.png", "/a", "/b?c", "/d"]


def test_redirect_loops_end(server):
    server.answer = redirect(*["/again"] * 20)
    with pytest.raises(SourceFetchError, match="more than 3 times"):
        fetch_url(server.url(), LOCAL)
    assert server.connections == 4


def test_a_redirect_to_a_private_host_is_refused(server, monkeypatch):
    inner = Server()
    try:
        server.answer = redirect(inner.url(host="127.0.0.1"))
        monkeypatch.setattr(_fetch, "is_public", lambda address: address == "127.0.0.2")
        resolver(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
        with pytest.raises((SourceNotAllowedError, SourceFetchError)):
            fetch_url(server.url(host="public.example.com"), SourcePolicy(timeout=3))
        monkeypatch.setattr(_fetch, "is_public", lambda address: True)
        checked = iter([True, False])
        monkeypatch.setattr(_fetch, "is_public", lambda address: next(checked))
        resolver(monkeypatch, ["127.0.0.1"])
        with pytest.raises(SourceNotAllowedError, match="not a public address"):
            fetch_url(server.url(host="public.example.com"), SourcePolicy(timeout=3))
        assert server.connections == 1 and inner.connections == 0
    finally:
        inner.close()


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://u:p@127.0.0.1/"],
)
def test_redirects_to_anything_but_plain_http_are_refused(server, target):
    server.answer = redirect(target)
    with pytest.raises(SourceNotAllowedError):
        fetch_url(server.url(), LOCAL)
    assert server.connections == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:{port}/",
        "http://example.com@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "http://127.0.0.1:{port}#@example.com/",
        "http://127.0.0.1:{port}\t@example.com/",
        "http:///x",
        "http:x",
        "http://",
        "http://:{port}/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://a..b/",
        "http://-/",
        "http://exa mple.com/",
        "http://[::1/",
        "http://" + "a" * 300 + ".com/",
        "http://" + "a." * 300 + "com/",
        "http://\u0000/",
        "http://xn--/",
        "http://\ud800/",
    ],
)
def test_tricky_urls_send_nothing(server, url):
    with pytest.raises(SourceError):
        fetch_url(url.replace("{port}", str(server.port)), SourcePolicy(timeout=3))
    assert server.connections == 0


def test_a_closed_port_and_an_unknown_host_say_so(server, monkeypatch):
    server.close()
    with pytest.raises(SourceFetchError, match="could not be fetched"):
        fetch_url(server.url(), LOCAL)
    server.__init__()

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(_fetch, "_resolve", unknown)
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        fetch_url(server.url(host="nowhere.example"), LOCAL)
    resolver(monkeypatch, [])
    with pytest.raises(SourceFetchError, match="no address"):
        fetch_url(server.url(host="empty.example"), LOCAL)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_verifies_the_name_although_the_address_is_pinned(server, monkeypatch, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=pictures.example.com", "-keyout", str(key),
         "-addext", "subjectAltName=DNS:pictures.example.com", "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(cert, key)
    resolver(monkeypatch, ["127.0.0.1"])
    url = server.url(host="pictures.example.com", scheme="https")
    with pytest.raises(SourceFetchError, match="certificate"):  # nobody vouches for it
        fetch_url(url, LOCAL)
    trusting = ssl.create_default_context(cafile=str(cert))
    monkeypatch.setattr(_fetch, "_ssl_context", lambda: trusting)
    assert fetch_url(url, LOCAL) == PNG
    with pytest.raises(SourceFetchError, match="certificate"):
        fetch_url(server.url(host="other.example.com", scheme="https"), LOCAL)
    server.answer = redirect(server.url(host="pictures.example.com"))
    with pytest.raises(SourceNotAllowedError, match="from https to http"):
        fetch_url(url, LOCAL)
