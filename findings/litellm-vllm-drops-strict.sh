#!/usr/bin/env bash
# LiteLLM takes `strict` and `additionalProperties` out of the tools that it sends to a vLLM server.
#
# Versions: litellm 1.110.2. Seen on 2026-11-30.
# Guessed: hosted_vllm/ sends tools as they are given, as openai/ does to the same server: vLLM knows both fields, and
#   holds a call of a strict tool to its schema.
# Seen: the request of hosted_vllm/ has neither field, at any depth, and nothing is said. A server that writes calls by
#   a grammar then allows invented keys, and one that looks for `strict` does not hold the call at all.
# Remedy: openai/ with the same api_base.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check litellm==1.110.2
"$folder/venv/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import litellm

sent = []
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
schema = {
    "type": "object", "required": ["city"], "additionalProperties": False, "properties": {"city": {"type": "string"}},
}
tool = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": schema}}
for provider in ("openai", "hosted_vllm"):
    litellm.completion(
        model=f"{provider}/m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="none",
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}], tools=[tool],
    )
    print(provider, json.dumps(sent[-1]["tools"][0]["function"]))
plain, vllm = (one["tools"][0]["function"] for one in sent)
assert plain["strict"] is True and plain["parameters"]["additionalProperties"] is False
assert "strict" not in vllm and "additionalProperties" not in vllm["parameters"], "the behaviour has changed"
PY
