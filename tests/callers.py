"""Models that write calls of tools, and what their tests speak of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from factories import tiny_tokenizer
from scripted import MARKS, scripted

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.records import checked_tools

HERMES = (
    "{% if tools %}<|start|>system\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% else %}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""A template in the manner of Hermes' and Qwen's."""

MISTRAL = HERMES.replace("\n<tool_call>\n", "[TOOL_CALLS]").replace("\n</tool_call>", "")
"""Its call begins with a control token."""

THINKS = HERMES.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}").replace(
    "{{ m.content }}{% endif %}", "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
    "{% endif %}{{ m.content }}{% endif %}"
)  # fmt: skip
"""Its prompt ends inside a thought."""

TAGGED = HERMES.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n',
    "<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n"
    "</parameter>\n{% endfor %}</function>\n",
)
"""Its calls hold each argument between tags."""

SPECIALS = (*MARKS, "[TOOL_CALLS]")
ASKED = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": SCHEMA}}
    for name in ("weather", "mail")
]
REFUSAL = "I'm sorry, but I can't help with that."


def offered(tools: Any = None) -> dict[str, Any]:
    """The variables of a template that offers tools, as a guard gives them."""
    use = checked_tools(tools or TOOLS)
    assert use is not None
    return {"tools": list(use.tools)}


def caller(
    write: str | Sequence[str], template: str = HERMES, *, tools: Any = None, asked: Any = None, **options: Any
) -> Guard:
    """A model that writes a text where it is offered the tools."""
    tokenizer = tiny_tokenizer(specials=SPECIALS, chat_template=template)
    model = scripted(tokenizer, lambda model: model.encode(asked or ASKED, offered(tools)), write, 1024)
    return Guard(LocalEngine(model), **{"generation": {"max_new_tokens": 200}, **options})


def call(name: str = "weather", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def judge(seen: list[str], bad: str = "bomb") -> CallableJudge:
    def grade(messages: Any, response: str) -> float:
        seen.append(response)
        return float(bad in response)

    return CallableJudge(grade)
