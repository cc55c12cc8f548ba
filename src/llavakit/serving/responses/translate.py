"""Requests of the Responses API -> the notation of chat completions, which is then answered."""

from __future__ import annotations

from typing import Any

from llavakit.serving.chat_schema import (
    AllowedTools,
    AllowedToolsChoice,
    ChatRequest,
    FunctionDefinition,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    NamedFunction,
    NamedToolChoice,
    ToolDefinition,
)
from llavakit.serving.messages import (
    AssistantMessage,
    CalledFunction,
    ChatMessage,
    MadeCall,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from llavakit.serving.notation import Asked
from llavakit.serving.responses.schema import (
    LOGPROBS,
    AllowedFunctionsChoice,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionChoice,
    FunctionTool,
    InputItem,
    MessageItem,
    NamedFunctionChoice,
    ObjectOfSchema,
    ResponsesRequest,
)
from llavakit.serving.responses.writer import ResponseWriter
from llavakit.serving.validation import parse


def asked(body: bytes) -> Asked:
    """Read the body of ``POST /v1/responses``.

    Raises:
        Refusal: it is not what it should be, or needs stored responses.
    """
    request = parse(ResponsesRequest, body)
    conversation = _Conversation(request)
    logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    chat = ChatRequest(
        model=request.model,
        messages=conversation.messages,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        logprobs=logprobs or None,
        top_logprobs=request.top_logprobs,
        stream=request.stream,
        tools=[_tool(tool) for tool in request.tools or ()] or None,
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request),
    )
    return Asked(
        bodies=(chat,),
        stream=bool(request.stream),
        writer=lambda served: ResponseWriter(request, served, logprobs=logprobs),
        place=conversation.place,
    )


class _Conversation:
    """The messages of an input, and where each of them stands in it."""

    def __init__(self, request: ResponsesRequest) -> None:
        self.messages: list[ChatMessage] = []
        self._places: list[tuple[str, str]] = []
        if request.instructions:
            self._add(SystemMessage(role="system", content=request.instructions), "instructions")
        if isinstance(request.input, str):
            self._add(UserMessage(role="user", content=request.input), "input")
            return
        for number, item in enumerate(request.input):
            self._take(item, f"input[{number}]")

    def place(self, number: int, block: int | None) -> str:
        """Where a message, or a block of it, stands in the body."""
        at, content = self._places[number]
        return at if block is None else f"{at}.{content}[{block}]"

    def _take(self, item: InputItem, at: str) -> None:
        if isinstance(item, FunctionCallItem):
            self._call(item, at)
        elif isinstance(item, FunctionCallOutputItem):
            message = ToolMessage(role="tool", tool_call_id=item.call_id, content=item.output)
            self._add(message, at, "output")
        elif isinstance(item, MessageItem):
            self._add(_message(item), at)

    def _call(self, item: FunctionCallItem, at: str) -> None:
        """Calls belong to the answer before them; in chat completions both are one message."""
        function = CalledFunction(name=item.name, arguments=item.arguments)
        call = MadeCall(id=item.call_id, function=function)
        last = self.messages[-1] if self.messages else None
        if isinstance(last, AssistantMessage):
            last.tool_calls = [*(last.tool_calls or ()), call]
        else:
            self._add(AssistantMessage(role="assistant", tool_calls=[call]), at)

    def _add(self, message: ChatMessage, at: str, content: str = "content") -> None:
        self.messages.append(message)
        self._places.append((at, content))


def _message(item: MessageItem) -> ChatMessage:
    if item.role == "user":
        return UserMessage(role="user", content=item.content)
    if item.role == "assistant":
        return AssistantMessage(role="assistant", content=item.content)
    return SystemMessage(role="system", content=item.content)


def _tool(tool: FunctionTool) -> ToolDefinition:
    function = FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return ToolDefinition(type="function", function=function)


def _named(choice: NamedFunctionChoice) -> NamedToolChoice:
    return NamedToolChoice(type="function", function=NamedFunction(name=choice.name))


def _choice(choice: FunctionChoice | None) -> Any:
    if isinstance(choice, NamedFunctionChoice):
        return _named(choice)
    if isinstance(choice, AllowedFunctionsChoice):
        allowed = AllowedTools(mode=choice.mode, tools=[_named(one) for one in choice.tools])
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _format(request: ResponsesRequest) -> Any:
    wanted = None if request.text is None else request.text.format
    if wanted is None or wanted.type == "text":
        return None
    if isinstance(wanted, ObjectOfSchema):
        schema = JsonSchema(name=wanted.name, schema=wanted.schema_)
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return JsonObjectFormat(type="json_object")
