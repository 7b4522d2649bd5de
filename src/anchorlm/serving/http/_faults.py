from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from anchorlm.records import keys_beside
from anchorlm.serving._errors import ApiError

_KIND = re.compile(r"(constrained-)?(str|int)|list\[.*\]")
"""How pydantic names the kinds of value that a parameter may have, among the names of the parameters."""


_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")

_MOST_NAMED = 40
"""Characters of a name that a client has made up."""


def handle_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's shape: one sentence, no stack, no path, no text of others."""

    def tell(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(ApiError)
    async def _(_: Request, error: ApiError) -> JSONResponse:
        return tell(error)

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> JSONResponse:
        words = {404: "There is nothing here: see /openapi.json.", 405: "This path takes another method."}
        sentence = words.get(error.status_code, "The request could not be read: send a JSON object.")
        return tell(ApiError(error.status_code, sentence))


def no_object() -> ApiError:
    """What a client is told whose body is none."""
    return ApiError(
        400, "The body is not a JSON object: send one with the content type application/json.", code="invalid_json"
    )


def unfit(cls: type[BaseModel], error: ValidationError) -> ApiError:
    """One sentence about the first thing that does not fit, without repeating what was sent.

    Args:
        cls: What the body should have been.
        error: What is wrong with it.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    place, told = [part for part in first["loc"] if not _KIND.fullmatch(str(part))], first.get("ctx", {})
    if not place and first["type"] in _NO_OBJECT:
        return no_object()
    if first["type"] == "unsupported":
        place += [told["param"]] if told["param"] else []
    name = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        *inside, last = (str(part)[:_MOST_NAMED] for part in place)
        known = ", ".join(keys_beside(cls, first["loc"]))
        return ApiError(400, f"There is no parameter {'.'.join([*inside, last])!r}; {'.'.join(inside) or 'a request'} "
                        f"has: {known}.", param=name, code="unknown_parameter")  # fmt: skip
    sentence, code = _sentence(first)
    named = name and not sentence.startswith(str(place[-1]))
    return ApiError(400, f"{name}: {sentence}." if named else f"{sentence}.", param=name or None, code=code)


def _sentence(first: Any) -> tuple[str, str]:
    """What is wrong, and its code."""
    if first["type"] == "unsupported":
        return str(first["ctx"]["said"]), str(first["ctx"]["code"])
    message = "should be an object" if first["type"] in _NO_OBJECT else str(first["msg"])
    message = message.removeprefix("Value error, ").rstrip(".")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return f"{message[:1].lower()}{message[1:]}", code
