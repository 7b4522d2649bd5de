"""LangChain. Needs `pip install langchain-openai langchain-deepseek`.

anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
python examples/clients/with_langchain.py
"""

from importlib.metadata import version
from typing import Any

from asked import BASE_URL, HARMFUL, HARMLESS, MODEL, STRICT, Bread, Weather, check, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import OpenAIRefusalError

server: Any = {"base_url": BASE_URL, "api_key": "none"}
model, strict = ChatOpenAI(model=MODEL, **server), ChatOpenAI(model=STRICT, **server)
# ChatOpenAI leaves out `reasoning_content`. This class for another maker's API reads it, and takes any address.
thinker = ChatDeepSeek(model=MODEL, api_base=BASE_URL, api_key="none")


def chat() -> str:
    """A whole answer."""
    return str(model.invoke(HARMLESS).text)


def stream() -> str:
    """The text in pieces."""
    text = "".join(chunk.text for chunk in model.stream(HARMLESS))
    check(text == chat(), f"the stream says {text!r}")
    return text


def tools() -> str:
    """A call, its result, and the answer to that."""
    asked = HumanMessage(HARMLESS)
    message = model.bind_tools([Weather], tool_choice="Weather").invoke([asked])
    call = message.tool_calls[0]
    city = Weather(**call["args"]).city
    result = ToolMessage(f"It rains in {city}.", tool_call_id=call["id"])
    check(model.bind_tools([Weather]).invoke([asked, message, result]).text, "no answer to the result")
    return f"{call['name']}({city})"


def schema() -> str:
    """An object of a class, once by the format and once by a call of a tool."""
    made = model.with_structured_output(Bread).invoke(HARMLESS)
    called = model.with_structured_output(Bread, method="function_calling").invoke(HARMLESS)
    check(isinstance(made, Bread) and isinstance(called, Bread), f"{made!r} and {called!r}")
    return repr(made)


def reasoning() -> str:
    """The thought stands apart."""
    whole = thoughts(thinker.invoke(HARMLESS))
    streamed = "".join(map(thoughts, thinker.stream(HARMLESS)))
    check(whole and whole == streamed, f"whole {whole!r}, streamed {streamed!r}")
    return streamed


def thoughts(message: Any) -> str:
    """The thoughts of a message or a piece of one."""
    return "".join(block.get("reasoning", "") for block in message.content_blocks if block["type"] == "reasoning")


def refusal() -> str:
    """An error in place of an object."""
    try:
        made = strict.with_structured_output(Bread).invoke(HARMFUL)
    except OpenAIRefusalError as error:
        return str(error)
    raise ValueError(f"an object of a refusal: {made!r}")


if __name__ == "__main__":
    run("LangChain", version("langchain-openai"), chat, stream, tools, schema, reasoning, refusal)
