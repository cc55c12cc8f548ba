"""One question about every image of a folder, in one batch of the model, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from langchain_core.messages import HumanMessage
from tqdm import tqdm

from llavakit.langchain import ChatLLaVA

FOLDER = Path(__file__).parent / "data"
pictures = sorted(path for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
model = ChatLLaVA(model="demo", temperature=0)


def question(path: Path) -> list[HumanMessage]:
    """Return the message that asks about an image."""
    return [HumanMessage([{"type": "image", "path": str(path)}, "Describe the image."])]


# Each answer comes as soon as it is there, with the number of its image.
answers = {}
running = model.batch_as_completed([question(path) for path in pictures])
for number, answer in tqdm(running, total=len(pictures), unit="image"):
    answers[number] = answer.text
for number, path in enumerate(pictures):
    print(f"{path.name}: {answers[number]}")
