"""Questions about pictures that a language model asks by name: the core of the agents' tools.

A model names a picture, never holds it: a picture of the conversation (``image_1``), one that
the program attached under a name, a file below a folder that is open to it, or an address.
:mod:`llavakit.questions.references` finds it and refuses what may not be named,
:mod:`llavakit.questions.asking` asks a :class:`~llavakit.backend.Backend` about it. No framework
here; :mod:`llavakit.langchain` and :mod:`llavakit.llama_index` make their tools of it.
"""

from llavakit.questions.asking import TOLD, PictureAnswer, PictureAsker
from llavakit.questions.references import Pictures, Reach, Shown, numbered
from llavakit.questions.schema import ImageQuestion

__all__ = [
    "TOLD",
    "ImageQuestion",
    "PictureAnswer",
    "PictureAsker",
    "Pictures",
    "Reach",
    "Shown",
    "numbered",
]
