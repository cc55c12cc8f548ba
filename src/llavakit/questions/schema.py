"""The arguments of the tools, as the models that call them see them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_IMAGE = "The image's name."
_DOCUMENT = "The name of the image or document."
_PAGES = 'Which pages, such as "2" or "1-3,7"; all of them if left out.'


class ImageQuestion(BaseModel):
    """A question about one image."""

    question: str = Field(description="What to find out.")
    image: str = Field(description=_IMAGE)


class ImageQuestionOnly(ImageQuestion):
    """A question about one image, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImagesQuestion(BaseModel):
    """A question about several images."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(description="What to find out.")
    images: list[str] = Field(description="The names of 2 to 8 images.")


class PagesQuestion(BaseModel):
    """What to read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(description=_DOCUMENT)
    pages: str = Field(default="", description=_PAGES)


class Extraction(BaseModel):
    """What to extract."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(description=_DOCUMENT)
    json_schema: dict[str, Any] = Field(
        description="The JSON schema of the data that is wanted of each page."
    )
    pages: str = Field(default="", description=_PAGES)
    prompt: str = Field(default="", description="What to look for, in words; may be left out.")


class Nothing(BaseModel):
    """No arguments."""

    model_config = ConfigDict(extra="forbid", strict=True)
