"""Fields of an invoice from its image and from pages of a PDF: valid by construction."""

from __future__ import annotations

from pathlib import Path

from langchain_core.messages import HumanMessage
from pydantic import BaseModel, Field

from llavakit.documents import open_pages
from llavakit.langchain import ChatLLaVA

DATA = Path(__file__).parent / "data"


class Invoice(BaseModel):
    """What is wanted of an invoice."""

    title: str
    number: int = Field(description="the number")
    total: int = Field(description="the total")


model = ChatLLaVA(model="demo", temperature=0)
extract = model.with_structured_output(Invoice)

# From an image.
picture = {"type": "image", "path": str(DATA / "invoice.png")}
print("picture:", extract.invoke([HumanMessage([picture, "Extract the data."])]))

# From each page of a PDF. (A PDF may also stand in a message as a whole, as a `file` block.)
for page in open_pages(DATA / "pages.pdf"):
    block = {"type": "image", "image": page.picture.rgb}
    print(f"page {page.number}: ", extract.invoke([HumanMessage([block, "Extract the data."])]))
