"""Questions about images that a language model asks by name: the core of the agents' tools.

A model names an image, never holds it: an image of the conversation (``image_1``), one that
the program attached under a name, a file below a folder that is open to it, or an address.
:mod:`llavakit.questions.references` finds it and refuses what may not be named,
:mod:`llavakit.questions.asking` asks a :class:`~llavakit.backend.Backend` about it,
:mod:`llavakit.questions.reading` reads its pages, :mod:`llavakit.questions.listing` lists what
there is. No framework here; :mod:`llavakit.langchain`, :mod:`llavakit.llama_index` and
:mod:`llavakit.mcp` make their tools of it.
"""

from llavakit.questions.answers import ImageAnswer
from llavakit.questions.asking import REPORTED, ImageAsker
from llavakit.questions.references import Pictures, Reach, Shown, numbered
from llavakit.questions.schema import ImageQuestion

__all__ = [
    "REPORTED",
    "ImageAnswer",
    "ImageAsker",
    "ImageQuestion",
    "Pictures",
    "Reach",
    "Shown",
    "numbered",
]
