"""Questions about images that a language model asks by name: the core of the agents' tools.

A model names an image, never holds it: an image of the conversation (``image_1``), one that
the program attached under a name, a file below a folder that is open to it, or an address.
:mod:`llavakit.questions.references` finds it and refuses what may not be named,
:mod:`llavakit.questions.asking` asks a :class:`~llavakit.backend.Backend` about it. No framework
here; :mod:`llavakit.langchain` and :mod:`llavakit.llama_index` make their tools of it.
"""

from llavakit.questions.asking import TOLD, ImageAnswer, ImageAsker
from llavakit.questions.references import Pictures, Reach, Shown, numbered
from llavakit.questions.schema import ImageQuestion

__all__ = [
    "TOLD",
    "ImageAnswer",
    "ImageAsker",
    "ImageQuestion",
    "Pictures",
    "Reach",
    "Shown",
    "numbered",
]
