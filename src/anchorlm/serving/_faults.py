from __future__ import annotations

import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from anchorlm.serving._errors import ApiError

_KIND = re.compile(r"(constrained-)?str|list\[.*\]")
"""How pydantic names the kinds of value that a parameter may have, among the names of the parameters."""


_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")


def handle_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's shape: one sentence, no stack, no path, no text of others."""

    def tell(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(ApiError)
    async def _(_: Request, error: ApiError) -> JSONResponse:
        return tell(error)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        return tell(_unfit(error))

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> JSONResponse:
        words = {404: "There is nothing here: see /openapi.json.", 405: "This path takes another method."}
        sentence = words.get(error.status_code, "The request could not be read: send a JSON object.")
        return tell(ApiError(error.status_code, sentence))


def _unfit(error: RequestValidationError) -> ApiError:
    """One sentence about the first thing that does not fit, without repeating what was sent."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:] if not _KIND.fullmatch(str(part)))
    if first["type"] == "json_invalid" or (not name and first["type"] in ("missing", "model_attributes_type")):
        return ApiError(400, "The body is not a JSON object: send one with the content type application/json.")
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"There is no parameter {name!r}: see /openapi.json.", param=name, code="unknown_parameter"
        )
    first["msg"] = "should be an object" if first["type"] in _NO_OBJECT else first["msg"]
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    sentence = f"{name}: {message[:1].lower()}{message[1:]}." if name else f"{message}."
    return ApiError(400, sentence, param=name or None)
