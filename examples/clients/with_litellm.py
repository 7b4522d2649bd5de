"""LiteLLM. Needs `pip install litellm`.

anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
python examples/clients/with_litellm.py
"""

import os
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices when it is imported

import litellm
from asked import BASE_URL, CALL_IT, HARMFUL, HARMLESS, MODEL, STRICT, TOOL, Bread, Weather, check, run

# The provider `hosted_vllm/` takes `additionalProperties` and `strict` out of the schemas of tools. This one does not.
server: Any = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": "none"}
asked: Any = [{"role": "user", "content": HARMLESS}]


def chat() -> str:
    """A whole answer."""
    choice = litellm.completion(messages=asked, **server).choices[0]
    check(choice.finish_reason == "stop", "the answer did not end")
    return str(choice.message.content)


def stream() -> str:
    """The text in pieces."""
    chunks = litellm.completion(messages=asked, stream=True, **server)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    check(text == chat(), f"the stream says {text!r}")
    return text


def tools() -> str:
    """A call, its result, and the answer to that."""
    message = litellm.completion(messages=asked, tools=[TOOL], tool_choice=CALL_IT, **server).choices[0].message
    call = message.tool_calls[0]
    city = Weather.model_validate_json(call.function.arguments).city
    result = {"role": "tool", "tool_call_id": call.id, "content": f"It rains in {city}."}
    answer = litellm.completion(messages=[*asked, message, result], tools=[TOOL], **server)
    check(answer.choices[0].message.content, "no answer to the result")
    return f"{call.function.name}({city})"


def schema() -> str:
    """A class as the format. What comes back is its JSON."""
    answer = litellm.completion(messages=asked, response_format=Bread, **server)
    return repr(Bread.model_validate_json(answer.choices[0].message.content))


def reasoning() -> str:
    """The thought stands apart."""
    message = litellm.completion(messages=asked, **server).choices[0].message
    chunks = litellm.completion(messages=asked, stream=True, **server)
    streamed = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    check(streamed == message.reasoning_content, "the streamed thought is another one")
    check(streamed not in message.content, "the thought stands in the answer")
    return streamed


def refusal() -> str:
    """In place of an object."""
    turns = [{"role": "user", "content": HARMFUL}]
    answer = litellm.completion(messages=turns, response_format=Bread, **{**server, "model": f"openai/{STRICT}"})
    message = answer.choices[0].message
    check(message.content is None, "the refusal stands in the content")
    return str(message.refusal)


if __name__ == "__main__":
    run("LiteLLM", version("litellm"), chat, stream, tools, schema, reasoning, refusal)
