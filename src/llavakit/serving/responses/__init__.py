"""OpenAI's Responses API, without a store: every request carries its whole conversation.

https://developers.openai.com/api/reference/responses
"""

from llavakit.serving.responses.schema import ResponsesRequest
from llavakit.serving.responses.translate import asked

__all__ = ["ResponsesRequest", "asked"]
