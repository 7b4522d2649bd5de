"""A small server in the manner of OpenAI's, in this process, on a tiny model; it fails as it is told to."""

from __future__ import annotations

import codecs
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import torch
from factories import heard

from anchorlm.models import CausalModel

Form = Literal["chat", "ids", "names"]
_KNOWN = {"model", "prompt", "messages", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed",
          "max_tokens", "logprobs", "top_logprobs", "stop", "stream", "logit_bias"}  # fmt: skip


def readable(model: CausalModel) -> CausalModel:
    """The model, made to write plain letters: bytes that are no character do not survive as text."""
    pieces = {token: model.vocabulary.token_bytes(token) for token in range(model.vocab_size)}
    plain = {token for token, data in pieces.items() if data and data.isascii() and data.decode().isprintable()}
    rows = [token for token in pieces if token not in plain | model.stop_ids]
    with torch.no_grad():
        model.model.get_output_embeddings().weight[rows] = 0
    return model


class Endpoint:
    """Serves one model on a port of its own.

    Args:
        model: Which.
        form: How log-probabilities come: as of chats with ids, as of completions with ids or with names; None: not.
        owner: What it says it is.
        arrays: Whether it takes token arrays; else it does not take such prompts.
        completions: Whether it serves /completions.
        continues: Whether it goes on with a trailing turn of the assistant: by itself, if flags say so, or not.
        tokenizes: Whether it shows how it splits a text, as vLLM does.
        counts: Whether it says how many tokens a prompt has.
        strict: Whether it refuses fields that OpenAI's interface does not have.
        most: Likeliest tokens that may be asked for.
        key: API key that it wants.
        hides: Whether it names tokens only where `logit_bias` says which one to take; `biased`: and counts it in.
        tls: With what it encrypts; None: it does not.
        lump: Tokens in each event of a stream.

    Attributes:
        connects: How often someone has connected.
        most_open: Most connections that were open at once.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        form: Form | None = "chat",
        owner: str = "a test",
        arrays: bool = True,
        completions: bool = True,
        continues: Literal["yes", "flags", "no"] = "yes",
        tokenizes: bool = False,
        counts: bool = True,
        strict: bool = False,
        most: int = 1000,
        key: str | None = None,
        hides: Literal["unbiased", "biased"] | None = None,
        tls: ssl.SSLContext | None = None,
        lump: int = 1,
        port: int = 0,
    ) -> None:
        self.model = model
        self.form, self.owner, self.arrays, self.completions = form, owner, arrays, completions
        self.continues, self.strict, self.most, self.key = continues, strict, most, key
        self.tokenizes, self.counts, self.hides, self.lump = tokenizes, counts, hides, lump
        self.id = "tiny"
        self.details: dict[str, Any] = {"max_model_len": 256}
        self.version = "0.32.0"
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.faults: deque[Any] = deque()
        self.always: Any = None
        self.left = threading.Event()
        self.connects = self.most_open = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint._get(self)

            def do_POST(self) -> None:
                endpoint._post(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def __init__(self, *args: Any) -> None:
                self.open: set[Any] = set()
                super().__init__(*args)

            def process_request(self, request: Any, client_address: Any) -> None:
                self.open.add(request)
                endpoint.most_open = max(endpoint.most_open, len(self.open))
                super().process_request(request, client_address)

            def get_request(self) -> Any:
                endpoint.connects += 1
                return super().get_request()  # with TLS, it ends here if nobody trusts us

            def close_request(self, request: Any) -> None:
                self.open.discard(request)
                super().close_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Ends the server, and every connection with it."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What was posted to a path."""
        return [body for place, body, _ in self.asked if place == path]

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if self._barred(handler):
            return
        if handler.path == "/v1/models":
            entry = {"id": self.id, "object": "model", "created": int(time.time()), "owned_by": self.owner}
            send(handler, 200, {"object": "list", "data": [entry | self.details]})
        elif handler.path == "/version" and self.owner == "vllm":
            send(handler, 200, {"version": self.version})
        else:
            send(handler, 404, {"error": {"message": "not found"}})

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        path = handler.path.removeprefix("/v1")
        self.asked.append((path, body, dict(handler.headers)))
        if self._barred(handler):
            return None
        fault = self.faults.popleft() if self.faults else self.always
        if fault is not None and self._fails(handler, fault, body):
            return None
        if path == "/tokenize" and self.tokenizes:
            return send(handler, 200, {"tokens": self.model.tokenizer(body["prompt"])["input_ids"]})
        chat = path == "/chat/completions"
        if not chat and not (path == "/completions" and self.completions):
            return send(handler, 404, {"error": {"message": "not found"}})
        unknown = set(body) - _KNOWN
        if self.strict and unknown:
            return send(handler, 400, {"error": {"message": f"unknown fields: {sorted(unknown)}"}})
        if body.get("model") != self.id:
            return send(handler, 404, {"error": {"message": f"there is no model {body.get('model')}"}})
        if not chat and isinstance(body["prompt"], list) and not self.arrays:
            return send(handler, 400, {"error": {"message": "prompt must be a text"}})
        top = (body.get("top_logprobs") if chat else body.get("logprobs")) if body.get("logprobs") else None
        if top is not None and top > self.most:
            return send(handler, 400, {"error": {"message": f"at most {self.most} log-probabilities"}})
        ids, begun = self._prompt(body) if chat else (self._ids(body["prompt"]), "")
        if len(ids) >= self.model.context_length:
            return send(handler, 400, {"error": {"message": "the prompt exceeds the maximum context length"}})
        silent = self.form is None or fault == "no logprobs" or (self.hides and not body.get("logit_bias"))
        self._answer(handler, body, chat, ids, begun, None if silent else top)
        return None

    def _barred(self, handler: BaseHTTPRequestHandler) -> bool:
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            send(handler, 401, {"error": {"message": "wrong key"}})
            return True
        return False

    def _fails(self, handler: BaseHTTPRequestHandler, fault: Any, body: Mapping[str, Any]) -> bool:
        """Whether the fault was the whole answer."""
        if isinstance(fault, int):
            send(handler, fault, {"error": {"message": "told to fail"}}, Location=f"{self.url}/models")
        elif fault == "garbage":
            send(handler, 200, b"<html>no json</html>")
        elif fault == "empty":
            send(handler, 200, {})
        elif fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"te')
            handler.close_connection = True
        elif fault == "cut stream":
            handler.send_response(200)
            handler.send_header("Connection", "close")
            handler.end_headers()
            event = {"model": self.id, "choices": [{"index": 0, "text": "Sure", "finish_reason": None}]}
            handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            handler.close_connection = True
        elif fault == "hang":
            with suppress(OSError):
                handler.connection.settimeout(20)
                if handler.connection.recv(1) == b"":  # who asked has gone
                    self.left.set()
        elif fault == "sum":
            top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -0.1}]
            entry = {"token": "a", "logprob": -0.1, "top_logprobs": top}
            choice = {"index": 0, "text": "a", "finish_reason": "length", "logprobs": {"content": [entry]}}
            send(handler, 200, {"model": self.id, "choices": [choice]})
        elif fault == "filter":
            send(handler, 200, {"model": self.id, "choices": [{"text": "x", "finish_reason": "content_filter"}]})
        elif fault == "close":
            handler.close_connection = True
        else:
            return False
        return True

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        return list(self.model.tokenizer(prompt)["input_ids"])

    def _prompt(self, body: Mapping[str, Any]) -> tuple[list[int], str]:
        turns: Sequence[Mapping[str, str]] = body["messages"]
        flagged = body.get("continue_final_message") is True and body.get("add_generation_prompt") is False
        goes_on = turns[-1]["role"] == "assistant" and (
            self.continues == "yes" or (flagged and self.continues == "flags")
        )
        if not goes_on:
            return self.model.encode(list(turns)), ""
        begun = turns[-1]["content"]
        return [*self.model.encode(list(turns[:-1])), *self.model.vocabulary.encode(begun.encode())], begun

    def _answer(
        self, handler: BaseHTTPRequestHandler, body: Mapping[str, Any], chat: bool, ids: list[int], begun: str,
        top: int | None,
    ) -> None:  # fmt: skip
        steps, finish = list(self._steps(ids, body, top)), "length"
        if steps and steps[-1][0] in self.model.stop_ids:
            finish = "stop"
        text = self.model.vocabulary.decode(token for token, _ in steps).decode("utf-8", "replace")
        frame = {"model": self.id, "object": "x", "id": "1"}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(steps)} if self.counts else None

        def choice(said: str, some: list[Any], end: str | None, streamed: bool) -> dict[str, Any]:
            part = (
                {"delta" if streamed else "message": {"role": "assistant", "content": said}} if chat else {"text": said}
            )
            ids = {"token_ids": [token for token, _ in some]} if body.get("return_token_ids") else {}
            return {"index": 0, **part, **ids, "logprobs": self._logprobs(chat, some), "finish_reason": end}

        if not body.get("stream"):
            whole = begun + text if chat and self.continues == "yes" else text
            return send(handler, 200, frame | {"choices": [choice(whole, steps, finish, False)], "usage": usage})
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def write(data: bytes) -> None:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for first in range(0, len(steps), self.lump):
            some = steps[first : first + self.lump]
            said = decoder.decode(self.model.vocabulary.decode(token for token, _ in some))
            write(_event(frame | {"choices": [choice(said, some, None, True)]}))
        write(_event(frame | {"choices": [choice(decoder.decode(b"", True), [], finish, True)]}))
        write(_event(frame | {"choices": [], "usage": usage}))
        # At once: our client waits half a second for the end, and a busy machine may take longer between two writes.
        handler.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return None

    def _steps(self, ids: list[int], body: Mapping[str, Any], top: int | None) -> Iterator[tuple[int, Any]]:
        """Tokens, each with its log-probability and the likeliest ones."""
        ids = list(ids)
        generator = torch.Generator().manual_seed(int(body.get("seed", 0)))
        for _ in range(body["max_tokens"]):
            with self._lock, torch.inference_mode():
                raw = self.model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            if self.hides == "biased":
                for token, bias in body.get("logit_bias", {}).items():
                    raw = raw + bias * torch.nn.functional.one_hot(torch.tensor(int(token)), len(raw))
            logprobs = heard(self.model, raw).log_softmax(-1)
            temperature = body["temperature"]
            probs = (logprobs / max(temperature, 1e-6)).softmax(-1)
            token = int(torch.multinomial(probs, 1, generator=generator)) if temperature else int(logprobs.argmax())
            best = logprobs.topk(min(top or 1, len(logprobs)))
            pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            yield token, None if top is None else (float(logprobs[token]), pairs)
            ids.append(token)
            if token in self.model.stop_ids or len(ids) >= self.model.context_length:
                return

    def _logprobs(self, chat: bool, steps: list[Any]) -> Any:
        steps = [step for step in steps if step[1] is not None]
        if not steps:
            return None
        if self.form == "chat" or chat:
            return {"content": [self._named(token, own) | {"top_logprobs": [self._named(*pair) for pair in top]}
                                for token, (own, top) in steps]}  # fmt: skip
        return {
            "tokens": [self._name(token) for token, _ in steps],
            "token_logprobs": [own for _, (own, _) in steps],
            "top_logprobs": [{self._name(token): value for token, value in top} for _, (_, top) in steps],
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.model.vocabulary.token_bytes(token)
        told = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob}
        return told | ({"id": token} if self.form == "chat" else {})

    def _name(self, token: int) -> str:
        if self.form == "ids":
            return f"token:{token}"
        data = self.model.vocabulary.token_bytes(token)
        return data.decode("utf-8", "replace") if data else str(self.model.tokenizer.convert_ids_to_tokens(token))


def _event(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def send(handler: BaseHTTPRequestHandler, status: int, data: Any, **headers: str) -> None:
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(payload)
