"""An agent with two tools, and one whose final answer is an object."""

from __future__ import annotations

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from llavakit.langchain import ChatLLaVA


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Paris": "sunny", "London": "rainy"}.get(city, "unknown")


model = ChatLLaVA(model="demo", temperature=0)

# Calls are constrained by the tools' schemas: a call that does not fit cannot happen.
agent = create_agent(model, [multiply, get_weather])
for question in ("Multiply 6 and 7.", "What is the weather in London?"):
    result = agent.invoke({"messages": [HumanMessage(question)]})
    for message in result["messages"][1:]:
        calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"{message.type:>5}: {message.text}{', '.join(calls)}")


class Person(BaseModel):
    """What a sentence tells of somebody."""

    name: str
    age: int


reader = create_agent(model, [], response_format=Person)
result = reader.invoke({"messages": [HumanMessage("Ada is 36 years old.")]})
print("object:", result["structured_response"])
