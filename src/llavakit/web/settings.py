"""What the page allows its visitors."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path

from llavakit._checks import check_integer, check_number
from llavakit.sources import SourcePolicy

MIB = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names by which a page on loopback is called."""


@dataclass(frozen=True, slots=True)
class WebSettings:
    """Defaults and limits of the page; all of it plain values.

    Attributes:
        temperature: what the page starts with, as ``top_p`` and ``max_tokens``.
        top_p: as in the page of the original LLaVA.
        max_tokens: most tokens of an answer.
        most_tokens: the largest ``max_tokens`` that a visitor may set.
        max_file_bytes: most bytes of one upload.
        max_pixels: most pixels of one image, checked before it is decoded.
        max_images: most images of one message, the pages of documents among them.
        max_pages: most pages that are taken of one document.
        max_upload_bytes: most bytes of uploads that were not sent yet, of all visitors.
        max_kept_bytes: most bytes of images that one conversation may hold.
        max_saved_bytes: most bytes of a saved conversation that is opened again.
        max_text: most characters of a message or a system text.
        max_turns: most questions of one conversation.
        max_visitors: most visitors whose conversations are held.
        seats: answers that are computed at once; they share the engine's batch.
        places: visitors who may wait in the queue behind them; one more is refused.
        linger: seconds for which a conversation is held after its tab was closed, so that
            reloading the page finds it again. Its running answer is cancelled at once.
        answer_timeout: seconds in which an answer must be complete; waiting in the queue is not
            counted.
    """

    temperature: float = 0.2
    top_p: float = 0.7
    max_tokens: int = 512
    most_tokens: int = 4096
    max_file_bytes: int = 20 * MIB
    max_pixels: int = 40_000_000
    max_images: int = 16
    max_pages: int = 16
    max_upload_bytes: int = 2048 * MIB
    max_kept_bytes: int = 128 * MIB
    max_saved_bytes: int = 192 * MIB
    max_text: int = 20_000
    max_turns: int = 100
    max_visitors: int = 256
    seats: int = 32
    places: int = 64
    linger: float = 60.0
    answer_timeout: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            none_is_right = field.name in ("temperature", "places", "linger")
            if isinstance(field.default, int):
                check_integer(field.name, value, least=0 if none_is_right else 1)
            elif none_is_right:
                check_number(field.name, value, least=0)
            else:
                check_number(field.name, value, above=0)

    def policy(self, folder: Path) -> SourcePolicy:
        """Return what may be opened: uploads in their folder and nothing else."""
        return SourcePolicy(
            roots=(folder,),
            allow_urls=False,
            max_bytes=self.max_file_bytes,
            max_pixels=self.max_pixels,
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
