"""The arguments of the tools, as their models see them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ImageQuestion(BaseModel):
    """A question about one picture."""

    question: str = Field(description="What to find out.")
    image: str = Field(description="The picture's name.")
