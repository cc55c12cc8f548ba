"""Fetching one URL from a host that may be hostile.

The guard sits where the socket is opened: :class:`_Guard` is httpcore's network backend, so
no path through redirects, odd spellings of addresses or a second DNS answer leads around
it. TLS still verifies the name that stands in the URL. Requests carry no cookies, no
credentials and no settings of the environment.
"""

from __future__ import annotations

import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, TypeAlias

import httpcore
import httpx

from llavakit.errors import (
    LlavaKitError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.sources.inline import check_length, shown
from llavakit.sources.policy import SourcePolicy

# Not public, although some versions of the ipaddress module call them global.
_REFUSED = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's virtual host service
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible, deprecated
        "64:ff9b:1::/48",  # NAT64, local use
        "100::/64",  # discard
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4 carries an IPv4 address; no server is reached so today
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local, deprecated
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (
    ("Accept", "image/*, application/pdf;q=0.9, */*;q=0.1"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "llavakit"),
    ("Connection", "close"),
)


Enough: TypeAlias = Callable[[bytearray], bool]
"""Takes what came of a body so far; returns whether the rest of it is not needed."""


def _all(so_far: bytearray) -> bool:
    return False


def fetch(url: str, policy: SourcePolicy, *, enough: Enough = _all) -> bytes:
    """See :func:`llavakit.sources.fetch_url`; ends the connection when it has ``enough``."""
    if not policy.allow_urls:
        raise SourceNotAllowedError(
            f"{shown(url)} is a URL, and SourcePolicy(allow_urls=False) forbids fetching; "
            "fetch it yourself and pass its bytes."
        )
    deadline = _Deadline(policy.timeout)
    address = _checked_url(url)
    try:
        with httpcore.ConnectionPool(
            ssl_context=_ssl_context(), network_backend=_Guard(policy, deadline), retries=0
        ) as pool:
            for _ in range(policy.max_redirects + 1):
                target, body = _get(pool, address, policy, deadline, enough)
                if target is None:
                    return body
                address = _redirected(address, target)
    except LlavaKitError:
        raise
    except httpcore.TimeoutException as error:
        raise SourceFetchError(
            f"{shown(url)} did not arrive within {policy.timeout:g} seconds; try again or raise "
            "SourcePolicy.timeout."
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SourceFetchError(f"{shown(url)} could not be fetched ({reason}).") from error
    raise SourceFetchError(
        f"{shown(url)} redirects more than {policy.max_redirects} times; use the final address."
    )


def _checked_url(url: str | httpx.URL) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        possible = bool(parsed.host) and (parsed.port is None or 0 < parsed.port < 65536)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        invalid = f"{shown(url)} is not a valid http(s) URL."
        raise SourceNotAllowedError(invalid, public=invalid) from error
    if parsed.scheme not in ("http", "https") or not possible:
        invalid = f"{shown(url)} is not a valid http(s) URL."
        raise SourceNotAllowedError(invalid, public=invalid)
    if parsed.userinfo:
        secret = f"{shown(url)} holds a user name or password, which are not sent"
        raise SourceNotAllowedError(
            f"{secret}; fetch it yourself and pass its bytes.",
            public=f"{secret}; send the image as a data URI.",
        )
    return parsed


def _redirected(address: httpx.URL, target: str) -> httpx.URL:
    try:
        joined = address.join(target)
    except (httpx.InvalidURL, ValueError) as error:
        raise SourceNotAllowedError(f"{shown(address)} redirects to no valid URL.") from error
    following = _checked_url(joined)
    if address.scheme == "https" and following.scheme != "https":
        raise SourceNotAllowedError(
            f"{shown(address)} redirects from https to http, which is not followed."
        )
    return following


def _get(
    pool: httpcore.ConnectionPool,
    address: httpx.URL,
    policy: SourcePolicy,
    deadline: _Deadline,
    enough: Enough,
) -> tuple[str | None, bytes]:
    """One request: the target of a redirect, or the body."""
    # The parsed parts, not the text: what is checked is what is connected to.
    target = httpcore.URL(
        scheme=address.raw_scheme, host=address.raw_host, port=address.port,
        target=address.raw_path,
    )  # fmt: skip
    host = address.netloc.decode("ascii")
    seconds = deadline.left()
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
    with pool.stream(
        "GET", target, headers=[("Host", host), *_HEADERS], extensions={"timeout": timeout}
    ) as response:
        fields = {k.lower(): v.decode("latin-1") for k, v in response.headers}
        location = fields.get(b"location")
        if response.status in _REDIRECTS and location is not None:
            return location, b""
        if response.status in (404, 410):
            nothing = f"There is nothing at {shown(address)} (HTTP {response.status})."
            raise SourceNotFoundError(nothing, public=nothing)
        if response.status != 200:
            refused = f"The server of {shown(address)} answered HTTP {response.status}."
            raise SourceFetchError(refused, public=refused)
        length = fields.get(b"content-length", "")
        if length.isdecimal():
            check_length(int(length), policy.max_bytes)
        stream = response.iter_stream()
        encoding = fields.get(b"content-encoding", "identity").strip().lower()
        return None, _body(stream, encoding, policy.max_bytes, enough)


def _body(stream: Iterable[bytes], encoding: str, max_bytes: int, enough: Enough) -> bytes:
    body = bytearray()
    for chunk in _decoded(stream, encoding, max_bytes):
        check_length(len(body) + len(chunk), max_bytes)
        body += chunk
        if enough(body):
            break
    return bytes(body)


def _decoded(stream: Iterable[bytes], encoding: str, max_bytes: int) -> Iterator[bytes]:
    """The body decompressed, never more than the cap at a time: a few kilobytes of gzip may
    hold gigabytes.
    """
    if encoding in ("", "identity"):
        yield from stream
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise SourceFetchError(
            f"The server compresses with {shown(encoding)} although asked not to; "
            "fetch it yourself and pass its bytes."
        )
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip or zlib by itself
    for chunk in stream:
        yield inflate.decompress(chunk, max_bytes + 1)  # what is over the cap ends the reading
        if inflate.eof:
            return
    raise SourceFetchError("The server's compressed answer is cut short; try again.")


class _Deadline:
    """A moment in the future; httpcore's own timeouts count each read anew."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the deadline passed")
        return seconds


class _Guard(httpcore.NetworkBackend):
    """Opens connections to checked addresses only, until the deadline."""

    def __init__(self, policy: SourcePolicy, deadline: _Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve_in_time(host, port, self._deadline)
        if not self._policy.allow_private_hosts:
            for address in addresses:
                if not is_public(address):
                    raise SourceNotAllowedError(
                        f"The host {shown(host)} is at {address}, which is not a public "
                        "address; fetch it yourself and pass its bytes."
                    )
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = self._sockets.connect_tcp(address, port, self._deadline.left())
                return _TimedStream(stream, self._deadline)
            except httpcore.ConnectError as error:
                failure = error
        raise failure or httpcore.ConnectError("the name has no address")


class _TimedStream(httpcore.NetworkStream):
    """A stream whose every step ends at one common deadline, so that drips do not add up."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secure = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _TimedStream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, by the system's resolver; tests put their own in its place."""
    import socket

    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _resolve_in_time(host: str, port: int, deadline: _Deadline) -> list[str]:
    """Resolves in a thread of its own: the system's resolver knows no timeout."""
    outcome: list[list[str] | Exception] = []

    def work() -> None:
        try:
            outcome.append(_resolve(host, port))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="llavakit-resolve", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not outcome:
        raise httpcore.ConnectTimeout("the name did not resolve in time")
    if isinstance(outcome[0], (OSError, UnicodeError)):
        raise SourceNotFoundError(f"The host {shown(host)} does not exist.") from outcome[0]
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


_making_context = threading.Lock()


def _ssl_context() -> ssl.SSLContext:
    """The one context; reading the certificates takes a tenth of a second of all threads."""
    with _making_context:  # a cache alone lets as many threads as there are make one each
        return _made_context()


@cache
def _made_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def is_public(address: str) -> bool:
    """Whether an IP address may be a public server's; addresses inside it count too."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or (IPv4Address(ip.packed[12:]) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _REFUSED):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
