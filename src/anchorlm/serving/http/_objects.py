from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

_MOST = 100
"""Names in one object of a request."""

Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]


def unsupported(param: str, message: str, code: str = "unsupported_parameter") -> PydanticCustomError:
    """What a client is told of something that this server does not do, and where in the request it stands.

    Args:
        param: Its place below the object that is being looked at.
        message: One sentence.
        code: For machines.
    """
    # Braces would be taken for places to fill in.
    return PydanticCustomError(
        "unsupported", "{said}", {"said": message, "param": param, "code": code}
    )  # fmt: skip


def text_or_list(*, others: str) -> Discriminator:
    """Tells a text from a list, for a message about what was meant and not about what was not."""

    def kind(value: Any) -> str | None:
        if isinstance(value, str):
            return "str"
        return "list[]" if isinstance(value, list) else None

    return Discriminator(
        kind, custom_error_type="text_or_list", custom_error_message=f"should be a text or a list of {others}"
    )


def few_names(data: Any) -> Any:
    """An object of not too many names. Anything else as it is.

    Raises:
        ValueError: It has too many.
    """
    if isinstance(data, dict) and len(data) > _MOST:
        raise ValueError(f"an object has at most {_MOST} names here")
    return data


class RequestObject(BaseModel):
    """A part of a request. Only the first thing that does not fit is looked for: a list may have half a million."""

    @model_validator(mode="before")
    @classmethod
    def _limited(cls, data: Any) -> Any:
        """Of few names. Those that are not known and say null, or are empty, ask for nothing."""
        if not isinstance(few_names(data), dict):
            return data
        return {name: value for name, value in data.items() if name in cls.model_fields or not is_empty(value)}


def without(data: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """An object without some of its values."""
    return {name: value for name, value in data.items() if name not in names}


def is_empty(value: Any) -> bool:
    """Whether a value asks for nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)
