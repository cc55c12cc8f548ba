"""Attached images, and the pages of attached documents, as resources.

``llavakit://images/plan`` is the image of that name, ``llavakit://images/scan/pages/2`` the
second page of a document. Files below open folders are not resources: they can be asked about.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from llavakit.errors import InputError, SourceNotFoundError
from llavakit.images import Picture
from llavakit.mcp.settings import MCPSettings
from llavakit.questions.listing import Attached, Listed
from llavakit.questions.references import Pictures

PREFIX = "llavakit://images/"
TEMPLATES = (
    {
        "uriTemplate": PREFIX + "{name}",
        "name": "image",
        "description": "An attached image as PNG.",
        "mimeType": "image/png",
    },
    {
        "uriTemplate": PREFIX + "{name}/pages/{page}",
        "name": "page",
        "description": "A page of an attached document as PNG; pages are numbered from 1.",
        "mimeType": "image/png",
    },
)
PER_LIST = 100
"""Most resources of one answer; the cursor gives the others."""
MAX_PIXELS = 4_000_000
"""Larger images are shrunk to this: a resource is read whole into a conversation."""

_URI = re.compile(re.escape(PREFIX) + r"([^/?#]+)(?:/pages/(\d{1,6}))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageResource:
    """An image as PNG.

    Attributes:
        png: the file.
        size: width and height of the original in pixels.
        sha256: the digest of the original's pixels.
        shrunk: whether the file has fewer pixels.
    """

    png: bytes
    size: tuple[int, int]
    sha256: str
    shrunk: bool

    def contents(self, uri: str) -> dict[str, Any]:
        """Return it as the protocol writes it."""
        return {
            "uri": uri,
            "mimeType": "image/png",
            "blob": base64.b64encode(self.png).decode(),
            "_meta": {
                "llavakit/size": list(self.size),
                "llavakit/sha256": self.sha256,
                "llavakit/shrunk": self.shrunk,
            },
        }


class Resources:
    """The resources of a server."""

    def __init__(self, settings: MCPSettings, attached: Attached) -> None:
        self._settings = settings
        self._attached = attached

    def page(self, cursor: str | None) -> dict[str, Any]:
        """Return some resources as the protocol writes them; opens documents.

        Raises:
            InputError: a cursor that was not given out.
        """
        begin = 0
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
                raise InputError("The cursor is not one that this server gave; begin anew.")
            begin = int(cursor)
        end = begin + PER_LIST
        described, more = [], False
        for number, one in enumerate(_described(self._attached.listed())):
            if number >= end:
                more = True
                break
            if number >= begin:
                described.append(one)
        return {"resources": described} | ({"nextCursor": str(end)} if more else {})

    def read(self, uri: str) -> ImageResource:
        """Return a resource.

        Raises:
            InputError: there is none of that address, or it cannot be opened.
        """
        match = _URI.fullmatch(uri)
        name = unquote(match[1]) if match else ""
        if match is None or name not in self._settings.attachments:
            raise SourceNotFoundError(
                f"There is no resource {uri[:120]!r}; resources/list names those there are."
            )
        attachments = self._settings.pictures().known
        with_page = name if match[2] is None else f"{name}#page={match[2]}"
        return _as_png(Pictures({name: attachments[name]}).find(with_page).picture)


def uri_of(name: str, page: int | None = None) -> str:
    """Return the address of an attached image, or of a page of a document."""
    address = PREFIX + quote(name, safe="")
    return address if page is None else f"{address}/pages/{page}"


def cited(record: Mapping[str, Any], attachments: Mapping[str, Any]) -> dict[str, Any]:
    """Add the resource's address to a citation, where there is such a resource."""
    document, page = record.get("document"), record.get("page")
    name = record["image"] if document is None else document
    return {**record, "uri": uri_of(name, page)} if name in attachments else dict(record)


def _described(listed: list[Listed]) -> Any:
    for one in listed:
        if one.pages is None:
            yield {"uri": uri_of(one.name), "name": one.name, "mimeType": "image/png"}
        for page in range(1, (one.pages or 0) + 1):
            uri, name = uri_of(one.name, page), f"{one.name}#page={page}"
            yield {"uri": uri, "name": name, "mimeType": "image/png"}


def _as_png(picture: Picture) -> ImageResource:
    rgb = picture.rgb
    width, height = rgb.size
    shrunk = width * height > MAX_PIXELS
    if shrunk:
        factor = (MAX_PIXELS / (width * height)) ** 0.5
        rgb = rgb.resize((max(1, int(width * factor)), max(1, int(height * factor))))
    file = io.BytesIO()
    rgb.save(file, "PNG")
    return ImageResource(file.getvalue(), (width, height), picture.digest, shrunk)
