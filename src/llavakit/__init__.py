"""llavakit: LLaVA vision-language models for LangChain and LlamaIndex.

>>> import llavakit
>>> backend = llavakit.load("demo")
>>> backend.ask("circle.png", "What colour is the circle?")  # doctest: +SKIP
'red'

Importing this package imports neither torch nor a framework.
"""

from __future__ import annotations

from llavakit import errors
from llavakit.backend import Backend, ModelInfo
from llavakit.loading import load
from llavakit.sources import SourcePolicy
from llavakit.values import (
    Chunk,
    Completion,
    Image,
    Message,
    Request,
    SamplingParams,
    Text,
    Tool,
    ToolCall,
    Usage,
    Video,
)

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Chunk",
    "Completion",
    "Image",
    "Message",
    "ModelInfo",
    "Request",
    "SamplingParams",
    "SourcePolicy",
    "Text",
    "Tool",
    "ToolCall",
    "Usage",
    "Video",
    "__version__",
    "errors",
    "load",
]
