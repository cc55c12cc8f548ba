"""Fields of an invoice from its image and from pages of a PDF: valid by construction."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import RichPromptTemplate
from pydantic import BaseModel, Field

from llavakit.documents import open_pages
from llavakit.llama_index import LLaVA

DATA = Path(__file__).parent / "data"


class Invoice(BaseModel):
    """What is wanted of an invoice."""

    title: str
    number: int = Field(description="the number")
    total: int = Field(description="the total")


llm = LLaVA(model="demo", temperature=0)

# From an image, by a prompt template.
prompt = RichPromptTemplate(
    '{% chat role="user" %}{{ picture | image }}Extract the data.{% endchat %}'
)
picture = str(DATA / "invoice.png")
print("picture:", llm.structured_predict(Invoice, prompt, picture=picture))

# From each page of a PDF, by a structured LLM. (A PDF may also stand in a message as a whole,
# as a DocumentBlock.)
reader = llm.as_structured_llm(Invoice)
for page in open_pages(DATA / "pages.pdf"):
    blocks = [ImageBlock(url=page.picture.data_uri()), TextBlock(text="Extract the data.")]
    print(f"page {page.number}: ", reader.chat([ChatMessage(role="user", blocks=blocks)]).raw)
