"""Uploads -> images: opened once and kept in memory, while the files are removed."""

from __future__ import annotations

import contextlib
import io
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llavakit.documents import Document, Failure, PageRange, open_files
from llavakit.errors import ImageTooLargeError, InputError
from llavakit.images import Picture
from llavakit.images.isolated import DecodeLimitError, is_heavy, open_isolated
from llavakit.sources import SourcePolicy, read_file
from llavakit.sources.formats import sniff
from llavakit.values import Image, Message, Part
from llavakit.web.settings import MIB, WebSettings

THUMBNAIL = 480
"""Pixels of the longer side of what the conversation shows."""
_PAGED = ("PDF", "TIFF")
_THE_PAGE = "the page itself"
_CHECKED = SourcePolicy(
    roots=(), allow_urls=False, max_pixels=2**40, max_side=2**30, max_bytes=2**40
)
"""For files that the settings' policy has let pass."""


@dataclass(frozen=True, slots=True)
class AttachedImage:
    """An image of a conversation.

    Attributes:
        name: the file's name, with the page's number for documents.
        image: what the model is given. An image is held as its file, which is a tenth of
            its pixels; a page as its pixels.
        digest: of the pixels (see :class:`~llavakit.images.Picture`).
        thumbnail: a small copy, as a data URI.
        size: bytes that it takes.
    """

    name: str
    image: Image
    digest: str
    thumbnail: str
    size: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of some uploads: images, and a sentence for whatever was left out."""

    pictures: tuple[AttachedImage, ...] = ()
    notes: tuple[str, ...] = ()


class Uploads:
    """Opens what visitors upload, and removes it afterwards.

    The web framework stores equal files once, under one path. So it is counted who uploaded
    what; a file goes when no browser is left that has not sent it yet. Belongs to one event loop,
    but for :meth:`open`.

    Args:
        folder: where uploads lie; nothing outside it is read.
        settings: the caps.
    """

    def __init__(self, folder: Path, settings: WebSettings) -> None:
        self.folder = folder
        self._settings = settings
        self._policy: SourcePolicy = settings.policy(folder)
        self._held: dict[str, Counter[str]] = {}
        self._latest: dict[str, float] = {}

    @property
    def full(self) -> bool:
        """Return whether uploads that were not sent yet take all the room there is for them."""
        sizes = (_size(path) for path in self._held)
        return sum(sizes) >= self._settings.max_upload_bytes

    def came(self, owner: str, paths: Iterable[str]) -> None:
        """Note that a browser uploaded files."""
        self._latest[owner] = time.monotonic()
        for path in paths:
            self._held.setdefault(path, Counter())[owner] += 1

    def forgotten(self, here: Callable[[str], bool]) -> None:
        """Release uploads of owners that are not here, and not just coming.

        A browser that is here has an open page; a program may upload and never be here.
        """
        limit = time.monotonic() - self._settings.linger
        for owner, latest in list(self._latest.items()):
            if owner != _THE_PAGE and latest <= limit and not here(owner):
                self.release(owner)

    def keep(self, paths: Iterable[str]) -> None:
        """Never remove these, even if a visitor uploads the same."""
        self.came(_THE_PAGE, paths)

    def claim(self, owner: str, paths: Iterable[str]) -> None:
        """Check that files are the owner's.

        Raises:
            InputError: one is not, or is gone.
        """
        for path in paths:
            if not self._held.get(path, Counter())[owner]:
                raise InputError(f"{Path(path).name} is not here any more; upload it again.")

    def release(self, owner: str, paths: Iterable[str] | None = None) -> None:
        """Release files that the owner sent, or all that it uploaded."""
        if paths is None:
            self._latest.pop(owner, None)
        everything = [path for path, owners in self._held.items() if owners[owner]]
        for path in everything if paths is None else paths:
            owners = self._held.get(path, Counter())
            owners[owner] = 0 if paths is None else owners[owner] - 1
            if path in self._held and not +owners:
                del self._held[path]
                self._remove(path)

    def _remove(self, path: str) -> None:
        place = Path(path)
        if place.resolve().is_relative_to(self.folder.resolve()):
            with contextlib.suppress(OSError):
                place.unlink()
                if place.parent != self.folder:
                    place.parent.rmdir()

    def open(self, paths: Sequence[str], pages: str = "") -> Opened:
        """Open images, and all pages of documents, in their order.

        Args:
            paths: uploaded files.
            pages: which pages to take of documents, such as ``"1-3,7"``; "" takes all.

        Raises:
            InputError: a file that cannot be opened, with its name; or too many images.
        """
        return self._open(paths, PageRange.parse(pages) if pages.strip() else None)

    def _open(self, paths: Sequence[str], wanted: PageRange | None) -> Opened:
        pictures: list[AttachedImage] = []
        notes: list[str] = []
        most = self._settings.max_images
        for path in paths:
            name = Path(path).name
            with naming(name, self._settings):
                data = read_file(path, self._policy)
                if sniff(data) in _PAGED:
                    pictures += self._pages(data, name, wanted, notes)
                else:
                    pictures.append(shown_picture(data, name, self._policy))
            if len(pictures) > most:
                raise InputError(
                    f"A message takes {most} images; send fewer, or name the pages that matter "
                    "in the settings."
                )
        return Opened(tuple(pictures), tuple(notes))

    def _pages(
        self, data: bytes, name: str, wanted: PageRange | None, notes: list[str]
    ) -> list[AttachedImage]:
        most = self._settings.max_pages
        found: list[AttachedImage] = []
        # One more than is taken, so that the limit is noticed.
        for page in open_files([Document(data, wanted)], policy=self._policy):
            if isinstance(page, Failure):
                raise page.error
            if len(found) == most:
                notes.append(
                    f"Only the first {most} pages of {name} were taken; name others in the "
                    "settings, such as 17-20."
                )
                break
            found.append(_shown(page.picture, f"{name}, page {page.number}", page.picture))
        return found


@contextlib.contextmanager
def naming(name: str, settings: WebSettings) -> Iterator[None]:
    """Say which file an error is about, and what a visitor can do.

    Raises:
        InputError: in place of any that is raised inside.
    """
    try:
        yield
    except DecodeLimitError as error:
        raise InputError(f"{name}: {error}") from error
    except ImageTooLargeError as error:
        raise InputError(
            f"{name} is too large: a file has at most {settings.max_file_bytes / MIB:.3g}"
            f" MiB, and an image {settings.max_pixels / 1e6:.3g} million pixels."
        ) from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def shown_picture(data: bytes, name: str, policy: SourcePolicy) -> AttachedImage:
    """Return an image's file as part of a conversation.

    Raises:
        ImageError: it cannot be used.
    """
    return _shown(data, name, open_isolated(data, policy))


def pixels(image: Image) -> Picture:
    """Return the pixels of a conversation's image, which was opened and checked before."""
    source = image.source
    return source if isinstance(source, Picture) else open_isolated(_file(source), _CHECKED)


def prepared(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages whose heavy images are pixels: the model decodes none of them here."""
    return tuple(
        Message(message.role, [_light(part) for part in message.content])
        if message.images
        else message
        for message in messages
    )


def _light(part: Part) -> Part:
    if not isinstance(part, Image) or isinstance(part.source, Picture):
        return part
    return Image(pixels(part)) if is_heavy(_file(part.source), _CHECKED) else part


def _file(source: object) -> bytes:
    assert isinstance(source, bytes)  # what an AttachedImage holds
    return source


def _shown(held: bytes | Picture, name: str, picture: Picture) -> AttachedImage:
    width, height = picture.size
    size = len(held) if isinstance(held, bytes) else 3 * width * height
    return AttachedImage(name, Image(held), picture.digest, _thumbnail(picture), size)


def _thumbnail(picture: Picture) -> str:
    small = picture.rgb.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return "data:image/jpeg;base64," + b64encode(jpeg.getvalue()).decode("ascii")


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
