"""The arguments of the tools, as their models see them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ImageQuestion(BaseModel):
    """A question about one image."""

    question: str = Field(description="What to find out.")
    image: str = Field(description="The image's name.")
