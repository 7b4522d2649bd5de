"""`llm`, Simon Willison's command and package. Needs `pip install llm`.

anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
python examples/clients/with_llm.py

On the command line: llm openai endpoint http://127.0.0.1:8000/v1 "How do I bake bread?" --model thinker
"""

import json
from importlib.metadata import version
from typing import Any

import llm
from asked import BASE_URL, CALL_IT, HARMFUL, HARMLESS, MODEL, STRICT, Bread, Weather, check, run
from llm.default_plugins.openai_models import Chat, Responses

server: Any = {"api_base": BASE_URL, "supports_schema": True, "supports_tools": True}


class Caller(Chat):  # type: ignore[misc] # `llm` is not there where mypy runs
    """Says which tool to call first: `llm` has no option for that, and waits for a model that calls by itself."""

    def build_kwargs(self, prompt: Any, stream: bool) -> dict[str, Any]:
        """What is sent besides the messages."""
        sent: dict[str, Any] = super().build_kwargs(prompt, stream)
        return sent if prompt.tool_results or not prompt.tools else {**sent, "tool_choice": CALL_IT}


# By default it asks for chats, and leaves out their thoughts. It reads thoughts of responses.
model, strict, caller = Chat(MODEL, **server), Chat(STRICT, **server), Caller(MODEL, **server)
thinker = Responses(MODEL, **server)
for one in (model, strict, caller, thinker):
    one.needs_key = None


def chat() -> str:
    """A whole answer."""
    return str(model.prompt(HARMLESS, stream=False).text())


def stream() -> str:
    """The text in pieces."""
    text = "".join(model.prompt(HARMLESS))
    check(text == chat(), f"the stream says {text!r}")
    return text


def tools() -> str:
    """A chain that calls the tool, and answers with what it said."""
    asked: list[str] = []

    def weather(city: str) -> str:
        asked.append(city)
        return f"It rains in {city}."

    tool = llm.Tool("weather", Weather.__doc__, Weather, weather)
    answer = caller.chain(HARMLESS, tools=[tool]).text()
    check(answer and asked, f"asked {asked}, answered {answer!r}")
    return f"weather({asked[0]})"


def schema() -> str:
    """A class as the schema. What comes back is its JSON."""
    return repr(Bread.model_validate_json(model.prompt(HARMLESS, schema=Bread).text()))


def reasoning() -> str:
    """The thought stands apart."""
    events = list(thinker.prompt(HARMLESS).stream_events())
    thought = "".join(event.chunk for event in events if event.type == "reasoning")
    check(thought, f"no thought: {json.dumps([event.type for event in events])}")
    return thought


def refusal() -> str:
    """In place of an object. The text is then empty, and the refusal stands in what the server sent."""
    response = strict.prompt(HARMFUL, schema=Bread, stream=False)
    check(response.text() == "", "an object of a refusal")
    return str(response.response_json["choices"][0]["message"]["refusal"])


if __name__ == "__main__":
    run("llm", version("llm"), chat, stream, tools, schema, reasoning, refusal)
