"""LLaVA as the LLM of LlamaIndex: a chat with an image, a stream, a prompt, a completion."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import RichPromptTemplate

from llavakit.llama_index import LLaVA, LLaVAMultiModal

SHAPES = Path(__file__).parent / "data" / "shapes.png"
llm = LLaVA(model="demo", temperature=0)

# A message of an image and a question.
first = ChatMessage(
    role="user",
    blocks=[ImageBlock(path=SHAPES), TextBlock(text="How many shapes are there?")],
)

# A stream: each response holds the answer so far, and what is new in it.
print("stream:   ", end="")
for response in llm.stream_chat([first]):
    print(response.delta, end="", flush=True)
print()

# A second turn about the same image, which is not computed again.
turns = [first, response.message, ChatMessage(role="user", content="What colour is the circle?")]
reply = llm.chat(turns)
usage = reply.raw["usage"]
print(f"turn 2:   {reply.message.content}", end=" ")
print(f"({usage['cached_tokens']} of {usage['prompt_tokens']} tokens were known)")

# A prompt template with an image in it.
prompt = RichPromptTemplate(
    '{% chat role="user" %}{{ picture | image }}What colour is the {{ shape }}?{% endchat %}'
)
print("template:", llm.predict(prompt, picture=str(SHAPES), shape="square"))

# For programs that were written for MultiModalLLM.
program = LLaVAMultiModal(model="demo", temperature=0)
answer = program.complete("What colour is the triangle?", image_documents=[SHAPES])
print("complete:", answer.text)
