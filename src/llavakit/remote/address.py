"""Where a server is, and with which settings it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from llavakit._checks import check_integer, check_number
from llavakit.errors import ParameterError
from llavakit.remote.dialects import DIALECTS
from llavakit.remote.http_client import ClientSettings

DEFAULT_RETRIES = 2
NO_SETTINGS = ClientSettings()
_ENDINGS = ("/chat/completions", "/v1")


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """Everything that makes two remote backends different.

    Attributes:
        model: the server's name for the model.
        address: of the server, without ``/v1`` (see :func:`normalized`).
        api_key: never shown.
        dialect: a name of :data:`~llavakit.remote.dialects.DIALECTS`; None finds it out.
        max_retries: most further attempts, where nothing was received.
        timeout: seconds for a whole answer, for requests that name none; None waits.
        context_length: what the server does not report, or a lower limit than it reports.
        extra_body: further fields of every chat completion, as JSON.
        http: what is said of the connections.
    """

    model: str
    address: str
    api_key: str | None = field(default=None, repr=False)
    dialect: str | None = None
    max_retries: int = DEFAULT_RETRIES
    timeout: float | None = None
    context_length: int | None = None
    extra_body: str = "{}"
    http: ClientSettings = field(default=NO_SETTINGS, repr=False)

    def __post_init__(self) -> None:
        if self.dialect is not None and self.dialect not in DIALECTS:
            raise ParameterError(
                f"dialect is {self.dialect!r}; use {', '.join(DIALECTS)}, or None to find out."
            )
        check_integer("max_retries", self.max_retries, least=0)
        if self.timeout is not None:
            check_number("timeout", self.timeout, above=0)
        if self.api_key is not None and not _fits_a_header(self.api_key):
            raise ParameterError(
                "api_key holds characters that no HTTP header can (line breaks, non-ASCII); "
                "check where it was read from."
            )


def normalized(base_url: str) -> str:
    """One spelling of an address: scheme and host in lower case, no ``/v1``, no last slash.

    Raises:
        ParameterError: not http(s), no host, or parts that do not belong there.
    """
    text = base_url.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ParameterError("base_url is not a valid address.") from error
    if parts.scheme.lower() not in ("http", "https") or not host or "\\" in text or " " in text:
        raise ParameterError(
            "base_url must be the http:// or https:// address of a server, such as "
            "http://localhost:8000/v1."
        )
    if parts.username is not None or parts.password is not None:
        raise ParameterError("base_url holds a user name or password; give a key by api_key=.")
    if parts.query or parts.fragment:
        raise ParameterError("base_url has a '?' or '#'; give the address alone, up to /v1.")
    path = parts.path.rstrip("/")
    for ending in _ENDINGS:
        path = path.removesuffix(ending).rstrip("/")
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme.lower()]
    place = shown if port in (None, default) else f"{shown}:{port}"
    return f"{parts.scheme.lower()}://{place}{path}"


def is_loopback(address: str) -> bool:
    """Whether a normalized address leads to this machine by its very name."""
    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _fits_a_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()
