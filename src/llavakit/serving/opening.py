"""The images, videos and files of a request, opened in the lanes that their work belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from llavakit.errors import SourceError, SourceFetchError, SourceNotAllowedError
from llavakit.images import Picture, open_picture, peek_cost
from llavakit.images.isolated import Decoders
from llavakit.serving.errors import blamed
from llavakit.serving.files import pages_of
from llavakit.serving.lanes import Lanes
from llavakit.serving.limits import Share
from llavakit.serving.sources import ImageSource
from llavakit.sources import SourcePolicy, is_address, read_source
from llavakit.videos.decode import measure

Opened = Picture | bytes
"""An image's pixels, or a video's file."""

_BY_VALUE = {
    "image": "send the image as a data URI (data:image/png;base64,...).",
    "file": "send the file as a data URI (data:application/pdf;base64,...).",
    "video": "send the video as a data URI (data:video/mp4;base64,...).",
}


class Opener:
    """Opens the images of one client's request.

    Args:
        lanes: where the work is done.
        decoders: processes for what is heavy.
        client: whose request it is; clients take turns.
        policy: what may be opened.
        share: the memory of the request, which images are charged to.
    """

    def __init__(
        self,
        lanes: Lanes,
        decoders: Decoders,
        client: str,
        policy: SourcePolicy,
        share: Share,
    ) -> None:
        self._lanes = lanes
        self._decoders = decoders
        self.client = client
        self._policy = policy
        self._share = share

    async def open(self, sources: Sequence[ImageSource], most: int) -> list[list[Opened]]:
        """Open images, videos and files one after the other.

        Args:
            sources: where they are.
            most: most images, pages of files among them.

        Returns:
            The images of each: one, or the pages of a file; or a video's file.

        Raises:
            Refusal: one cannot be opened, with its place; or all open requests together hold
                too much.
        """
        left = most - sum(source.file is None for source in sources)
        opened: list[list[Opened]] = []
        for source in sources:
            with blamed(source.place):
                if source.video:
                    opened.append([await self._video(source.source)])
                elif source.file is None:
                    opened.append([await self._image(source.source)])
                else:
                    opened.append([*await self._pages(source.source, source.file, left)])
                    left -= len(opened[-1])
        return opened

    async def _image(self, source: str) -> Picture:
        data = await self._read(source, "image")
        self._share.take(len(data))
        try:
            picture = await self._decoded(data)
        finally:
            self._share.give_back(len(data))
        width, height = picture.size
        self._share.take(3 * width * height)
        return picture

    async def _video(self, source: str) -> bytes:
        """The video's file, whose head was read; it is decoded when it is asked about."""
        data = await self._read(source, "video")
        self._share.take(len(data))
        lane = self._lanes.of(size=len(data))
        await lane.run(self.client, lambda: measure(data, self._policy))
        return data

    async def _pages(self, source: str, name: str, most: int) -> list[Picture]:
        data = await self._read(source, "file")
        self._share.take(len(data))
        try:
            return await self._lanes.drawing.run(
                self.client, lambda: pages_of(data, name, most, self._policy, self._share.take)
            )
        finally:
            self._share.give_back(len(data))

    async def _read(self, source: str, what: str) -> bytes:
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
            raise self._reported(error, address, what) from error

    async def _decoded(self, data: bytes) -> Picture:
        def measure() -> int:
            return peek_cost(data, self._policy)

        cost = await self._lanes.light.run(self.client, measure)
        lane = self._lanes.of(size=len(data), pixels=cost)
        opened = self._decoders.open if lane is self._lanes.heavy else open_picture
        return await lane.run(self.client, lambda: opened(data, self._policy))

    def _reported(self, error: SourceError, address: bool, what: str) -> SourceError:
        """The error for a client: what was not written for strangers is not shown to them."""
        if error.public is not None:
            return error
        if not (address and self._policy.allow_urls):
            urls = "" if self._policy.allow_urls else " and fetches no URLs"
            return SourceNotAllowedError(f"This server reads no paths{urls}: {_BY_VALUE[what]}")
        # A name that leads inside must look like one that does not exist.
        return SourceFetchError(
            f"The {what} could not be fetched from a public address; check its URL, or "
            + _BY_VALUE[what]
        )
