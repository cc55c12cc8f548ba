"""Components of the framework that are loaded with their policy, or not at all.

The framework serialises a component's fields and the name of its class. A component that is
loaded without its policy would have the default one, which is open; so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from llama_index.core.schema import BaseComponent
from pydantic import model_validator

from llavakit.errors import ParameterError

_WRITTEN = "class_name"


class PolicyRequired(BaseComponent):
    """A component that cannot be loaded from data without its policy.

    Attributes:
        policy_field: the name of the field that holds the policy.
    """

    policy_field: ClassVar[str] = "policy"

    @model_validator(mode="before")
    @classmethod
    def _without_the_name(cls, values: Any) -> Any:
        # Within another component, or by `model_validate`, the class name is still there.
        if not isinstance(values, Mapping) or _WRITTEN not in values:
            return values
        return cls._read_back(values)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Load the component that ``to_dict`` wrote.

        Args:
            data: the result of ``to_dict``.
            **kwargs: fields to set otherwise.

        Raises:
            ParameterError: the policy is missing.
        """
        if not isinstance(data, Mapping):
            raise ParameterError(f"data is of type {type(data).__name__}; give what to_dict wrote.")
        given = {**data, **kwargs}
        return super().from_dict(cls._read_back(given) if _WRITTEN in given else given)

    @classmethod
    def _read_back(cls, written: Mapping[str, Any]) -> dict[str, Any]:
        cls._check_policy(written)
        return {name: value for name, value in written.items() if name != _WRITTEN}

    @classmethod
    def _check_policy(cls, written: Mapping[str, Any]) -> None:
        if cls.policy_field not in written:
            raise ParameterError(
                f"This {cls.__name__} was saved without its {cls.policy_field}, so what it may "
                f"open is unknown; give it one: {cls.policy_field}=SourcePolicy(...)."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The framework leaves out of a pickle what cannot be pickled.
        self._check_policy(state["__dict__"])
        super().__setstate__(state)
