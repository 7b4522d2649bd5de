from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from anchorlm.models import CausalModel
from anchorlm.serving._errors import ApiError
from anchorlm.serving.http._faults import no_object, unfit

T = TypeVar("T", bound=BaseModel)

_PLACE = "#/components/schemas/{model}"


def read_body(cls: type[T], body: bytes, content_type: str) -> T:
    """A request's body as what it should be. Takes its time for a large one, so not for the event loop.

    Args:
        cls: What it should be.
        body: As it came.
        content_type: Its header.

    Raises:
        ApiError: 400, it is something else.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not kind.startswith("application/") or not kind.endswith(("/json", "+json")):
        raise no_object()
    try:
        return cls.model_validate(json.loads(body))
    except ValidationError as error:
        raise unfit(cls, error) from None
    except (ValueError, RecursionError):
        raise no_object() from None


def raw_text(model: CausalModel, prompt: str | list[int]) -> str:
    """A raw prompt as the text that goes to a model: no control token is in it, whether it is spelled or given by id.

    Raises:
        ApiError: 400, an id that the model does not have.
    """
    if not isinstance(prompt, str):
        size = model.vocabulary.size
        if max(prompt) >= size:
            raise ApiError(400, f"The prompt has a token id beyond the model's {size}: send ids of its own tokenizer.",
                           param="prompt", code="invalid_prompt")  # fmt: skip
        prompt = model.vocabulary.decode(prompt).decode("utf-8", "replace")
    return model.without_control_tokens(prompt)


def described(cls: type[BaseModel]) -> dict[str, Any]:
    """What the API's document says of a body that `read_body` reads."""
    schema = {"$ref": _PLACE.format(model=cls.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, *bodies: type[BaseModel]) -> None:
    """Adds the schemas of such bodies to the API's document."""

    def document() -> Mapping[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_PLACE)
            found.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign, assignment]
