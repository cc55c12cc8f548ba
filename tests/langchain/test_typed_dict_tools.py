"""TypedDicts as tools: keys that may be missing are not required."""

from typing import Annotated, NotRequired, Required

import pytest
from typing_extensions import TypedDict

from llavakit.langchain.tools import to_tools


class Shape(TypedDict):
    """Look at a shape."""

    shape: str
    size: NotRequired[int]


class Loose(TypedDict, total=False):
    """Look at a shape."""

    shape: Required[str]
    size: Annotated[int, None, "in pixels"]


class Noted(TypedDict):
    """Look at a shape."""

    shape: Annotated[str, ..., "round or not"]
    size: NotRequired[Annotated[int, None, "in pixels"]]


class Holder(TypedDict):
    """Look at a shape in a shape."""

    inner: Shape


class Described(TypedDict):
    """Look at a shape.

    Args:
        shape: round or not.
    """

    shape: str


@pytest.mark.parametrize("kind", [Shape, Loose, Noted])
def test_a_key_that_may_be_missing_is_not_required(kind):
    (tool,) = to_tools([kind])
    assert (tool.name, tool.description) == (kind.__name__, "Look at a shape.")
    assert tool.parameters["required"] == ["shape"]
    assert {key: one["type"] for key, one in tool.parameters["properties"].items()} == {
        "shape": "string",
        "size": "integer",
    }


def test_so_it_is_in_a_typed_dict_inside_another():
    (tool,) = to_tools([Holder])
    assert tool.parameters["required"] == ["inner"]
    assert tool.parameters["$defs"]["Shape"]["required"] == ["shape"]


def test_descriptions_of_its_docstring_stay():
    (tool,) = to_tools([Described])
    assert tool.description == "Look at a shape."
    assert tool.parameters["properties"]["shape"]["description"] == "round or not."
