"""The images and videos of a request, opened in the lanes that their work belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavakit.errors import SourceError, SourceFetchError, SourceNotAllowedError
from llavakit.images import Picture, open_picture, peek_size
from llavakit.serving.errors import blamed
from llavakit.serving.lanes import Lanes
from llavakit.serving.limits import Share
from llavakit.sources import SourcePolicy, is_address, read_source
from llavakit.videos.decode import measure

_BY_VALUE = "send it as a data URI (data:image/png;base64,... or data:video/mp4;base64,...)."

Opened = Picture | bytes
"""An image's pixels, or a video's file."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an image or a video of a request comes from.

    Attributes:
        place: in the body, for errors.
        source: a data URI, base64, or an address.
        video: whether it is a video, which is read here and decoded when it is asked about.
    """

    place: str
    source: str
    video: bool = False


class Opener:
    """Opens the images of one client's request.

    Args:
        lanes: where the work is done.
        client: whose request it is; clients take turns.
        policy: what may be opened.
        share: the memory of the request, which images are charged to.
    """

    def __init__(self, lanes: Lanes, client: str, policy: SourcePolicy, share: Share) -> None:
        self._lanes = lanes
        self.client = client
        self._policy = policy
        self._share = share

    async def open(self, sources: Sequence[ImageSource]) -> list[Opened]:
        """Open images and videos one after the other.

        Raises:
            Refusal: one cannot be opened, with its place; or all open requests together hold
                too much.
        """
        return [await self._open(source) for source in sources]

    async def _open(self, image: ImageSource) -> Opened:
        with blamed(image.place):
            data = await self._read(image.source)
            self._share.take(len(data))
            if image.video:
                await self._lanes.of(size=len(data)).run(
                    self.client, lambda: measure(data, self._policy)
                )
                return data
            try:
                picture = await self._decoded(data)
            finally:
                self._share.give_back(len(data))
            width, height = picture.size
            self._share.take(3 * width * height)
        return picture

    async def _read(self, source: str) -> bytes:
        address = is_address(source)
        if address and self._policy.allow_urls:
            lane = self._lanes.fetching
        else:
            lane = self._lanes.of(size=len(source))
        try:
            return await lane.run(
                self.client, lambda: read_source(source, self._policy, from_url_field=True)
            )
        except SourceError as error:
            raise self._told(error, address) from error

    async def _decoded(self, data: bytes) -> Picture:
        def size() -> int:
            width, height = peek_size(data, self._policy)
            return width * height

        pixels = await self._lanes.light.run(self.client, size)
        lane = self._lanes.of(size=len(data), pixels=pixels)
        return await lane.run(self.client, lambda: open_picture(data, self._policy))

    def _told(self, error: SourceError, address: bool) -> SourceError:
        """The error for a client: what was not written for strangers is not shown to them."""
        if error.public is not None:
            return error
        if not (address and self._policy.allow_urls):
            urls = "" if self._policy.allow_urls else " and fetches no URLs"
            return SourceNotAllowedError(f"This server reads no paths{urls}: {_BY_VALUE}")
        # A name that leads inside must look like one that does not exist.
        return SourceFetchError(
            "The file could not be fetched from a public address; check its URL, or " + _BY_VALUE
        )
