"""The shortest program: an image, a question, an answer. No framework."""

from __future__ import annotations

from pathlib import Path

import llavakit

DATA = Path(__file__).parent / "data"

backend = llavakit.load("demo")
print(backend.ask(DATA / "shapes.png", "What colour is the circle?"))

# The same image again costs no second look, and answers can be streamed.
picture = llavakit.Image(DATA / "shapes.png")
for chunk in backend.stream(llavakit.Message("user", [picture, "Describe the image."])):
    print(chunk.text, end="", flush=True)
print()
