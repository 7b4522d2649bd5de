"""Stands in front of a vLLM server with our plug-in, and says itself how each request is guarded.

Needs `pip install httpx starlette uvicorn`.

python -m uvicorn --app-dir examples gateway:app --port 8080
"""

import json
import os
from collections.abc import AsyncIterator

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEPT = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop",
        "stream", "stream_options"}  # fmt: skip
"""What a client may say. All else is removed: other fields can choose past the guide."""
GUARD = {"anchorlm": json.dumps({"alpha": 0.5, "mixed_tokens": 6})}

# By itself, httpx would let 100 requests at once through, and the others wait.
vllm = httpx.AsyncClient(base_url=os.environ.get("VLLM_URL", "http://127.0.0.1:8000"), timeout=None,
                         limits=httpx.Limits(max_connections=None))  # fmt: skip


async def guarded(request: Request) -> Response:
    """The server's answer to the request as we write it, in pieces as they come."""
    try:
        said = await request.json()
        body = {name: said[name] for name in said.keys() & KEPT} | {"vllm_xargs": GUARD}
        key = {name: request.headers[name] for name in ("authorization",) if name in request.headers}
        asked = vllm.build_request("POST", request.url.path, json=body, headers=key)
    except (ValueError, AttributeError, RecursionError):
        return JSONResponse({"error": {"message": "The body is no JSON object."}}, 400)
    try:
        answer = await vllm.send(asked, stream=True)
    except httpx.HTTPError:
        return JSONResponse({"error": {"message": "The server is not there."}}, 502)
    return StreamingResponse(pieces(answer), answer.status_code, media_type=answer.headers.get("content-type"))


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """An answer as it comes. If the client leaves, the server's work ends, too."""
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    finally:
        await answer.aclose()


# Other paths of the server stay shut.
PATHS = ("/v1/chat/completions", "/v1/completions")
app = Starlette(routes=[Route(path, guarded, methods=["POST"]) for path in PATHS])
