"""ChatLLaVA where any chat model fits: a chain, a stream, a conversation, a batch."""

from __future__ import annotations

from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from llavakit.langchain import ChatLLaVA

DATA = Path(__file__).parent / "data"
model = ChatLLaVA(model="demo", temperature=0)

# A chain: a prompt template with an image, the model, a parser.
prompt = ChatPromptTemplate(
    [
        (
            "user",
            [
                {"type": "image", "path": "{picture}"},
                {"type": "text", "text": "What colour is the {shape}?"},
            ],
        )
    ]
)
chain = prompt | model | StrOutputParser()
print("chain:  ", chain.invoke({"picture": str(DATA / "shapes.png"), "shape": "square"}))

# Many at once share one batch of the model.
shapes = ["circle", "square", "triangle"]
inputs = [{"picture": str(DATA / "shapes.png"), "shape": shape} for shape in shapes]
print("batch:  ", chain.batch(inputs))

# A stream, and a second turn about the same image.
first = HumanMessage(
    [
        {"type": "image", "path": str(DATA / "shapes.png")},
        {"type": "text", "text": "How many shapes are there?"},
    ]
)
print("stream:  ", end="")
answer = ""
for chunk in model.stream([first]):
    print(chunk.text, end="", flush=True)
    answer += chunk.text
print()
turns = [first, AIMessage(answer), HumanMessage("What colour is the circle?")]
reply = model.invoke(turns)
print("turn 2: ", reply.text, f"({reply.usage_metadata['input_tokens']} tokens in)")
