"""Which format bytes are in, detected from the bytes alone.

Declared types and file names are never trusted. Formats that are not decoded here are
recognised too, so that the error can say what to do.
"""

from __future__ import annotations

import re

from llavakit.errors import ImageDecodeError, ImageError, UnsupportedImageError

ALLOWED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIC")
"""Formats that are decoded. JPEG includes MPO (its first image); PPM is PBM, PGM and PPM; AVIF
and JPEG 2000 where Pillow was built with them; HEIC with ``llavakit[heif]``."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "ICO"),
    (b"icns", "ICO"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL ", "JXL"),
    (b"version https://git-lfs", "LFS"),
    (b"\x1aE\xdf\xa3", "VIDEO"),
    (b"\0\0\1\xba", "VIDEO"),
    (b"\0\0\1\xb3", "VIDEO"),
    (b"FLV\1", "VIDEO"),
    (b"PK\3\4", "ZIP"),
    (b"\x1f\x8b\x08", "GZIP"),
)
_ASCII_MARKUP: tuple[tuple[bytes, str], ...] = (
    (b"<svg", "SVG"),
    (b"<!doctype svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<head", "HTML"),
    (b"<body", "HTML"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1")
_PPM = re.compile(rb"P[4-6][\s#]")
_PLAIN_PNM = re.compile(rb"P[1-3][\s#]")
_COMMENT = re.compile(rb"<!--.*?-->|<\?.*?\?>", re.DOTALL)

_ADVICE = {
    "SVG": "SVG is a drawing, not pixels, and is not opened; render it to PNG first",
    "PDF": "this is a PDF, not an image; open its pages with llavakit.documents.open_pages",
    "EPS": "PostScript is a program and is not run; convert it to PNG first",
    "PSD": "Photoshop files are not opened; export it as PNG first",
    "FITS": "FITS data are not opened; convert it to PNG or pass a numpy array",
    "PLAIN_PNM": "an image of numbers as text (PNM of type P1, P2 or P3) takes minutes to read and "
    "is not opened; save it as PNG, or as binary PNM (P4, P5, P6)",
    "ICO": "icon files are not opened; convert it to PNG first",
    "JPEG2000": "this Pillow cannot decode JPEG 2000; upgrade Pillow or convert it to PNG",
    "JXL": "JPEG XL is not opened; convert it to JPEG or PNG first",
    "VIDEO": "this is a video, not an image; wrap it in llavakit.Video for a model that takes "
    "videos, and for others extract the frames that you want to ask about",
    "AUDIO": "this is sound, not an image",
    "ZIP": "this is a ZIP archive or an Office document, not an image; open its pages with "
    "llavakit.documents.open_pages, or extract it",
    "GZIP": "this is gzip data, not an image; decompress it first",
    "HTML": "this is a web page, not an image, perhaps the server's error page; check the address",
    "JSON": "this is JSON, not an image, perhaps the server's error answer; check the address",
    "LFS": "this is a Git LFS pointer, not the image itself; run 'git lfs pull' first",
    "AVIF": "this Pillow cannot decode AVIF; upgrade Pillow or convert it to PNG",
}
_PUBLIC_ADVICE = {
    "PDF": "this is a PDF, not an image; send its pages as images",
    "LFS": "this is a Git LFS pointer, not the image itself; send the image",
    "ZIP": "this is a ZIP archive or an Office document, not an image; send its pages as images",
    "AVIF": "AVIF is not decoded here; convert it to PNG",
    "VIDEO": "this is a video, not an image; send it as a video, or send frames of it",
}
"""For remote callers, where the advice above is for the author of a program."""


def sniff(data: bytes) -> str:
    """The name of the format (see :data:`ALLOWED`), of another known kind, or ``""``."""
    head = data[:1024]
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"RIFF"):
        return {b"WEBP": "WEBP", b"AVI ": "VIDEO", b"WAVE": "AUDIO"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _iso_kind(head)
    if _PPM.match(head):
        return "PPM"
    if _PLAIN_PNM.match(head):
        return "PLAIN_PNM"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if b"%PDF-" in head:
        return "PDF"
    if head.startswith((b"ID3", b"OggS", b"fLaC")):
        return "AUDIO"
    return _markup_kind(data[:4096])


def is_known(data: bytes) -> bool:
    """Whether the bytes begin like a file of a known kind, decodable or not.

    Bare JPEG XL has two bytes of magic, which the path "/word/..." read as base64 has too.
    """
    return sniff(data) not in ("", "JXL")


def refusal(kind: str, size: int) -> ImageError:
    """The error for bytes that are not decoded."""
    if not size:
        return ImageDecodeError("The image is empty: the source has no bytes.")
    if kind:
        advice = _ADVICE[kind]
        public = _PUBLIC_ADVICE.get(kind, advice)
        return UnsupportedImageError(_sentence(advice), public=_sentence(public))
    return ImageDecodeError(
        f"These {size:,} bytes are not an image in a known format; use {', '.join(ALLOWED)}."
    )


def _sentence(advice: str) -> str:
    return f"{advice[0].upper()}{advice[1:]}."


def _iso_kind(head: bytes) -> str:
    """Files of boxes (ISO 14496-12): AVIF, HEIC and most videos, detected by brand."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, length - 3, 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIC_BRANDS for brand in brands):
        return "HEIC"
    return "VIDEO"


def _markup_kind(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head[2:].replace(b"\0", b"")
    text = _COMMENT.sub(b"", head.removeprefix(b"\xef\xbb\xbf")).lstrip().lower()
    for start, kind in _ASCII_MARKUP:
        if text.startswith(start):
            return kind
    if text.startswith(b"<") and b"<svg" in text:
        return "SVG"
    return "JSON" if re.match(rb'(\{|\[\s*\{)\s*"', text) else ""
