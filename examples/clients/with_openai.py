"""The `openai` package for Python. Needs `pip install openai`.

anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
python examples/clients/with_openai.py
"""

from typing import Any

import openai
from asked import BASE_URL, CALL_IT, HARMFUL, HARMLESS, MODEL, STRICT, TOOL, Bread, Weather, check, run

client = openai.OpenAI(base_url=BASE_URL, api_key="none")
asked: Any = [{"role": "user", "content": HARMLESS}]


def chat() -> str:
    """A history as another server wrote it, and the sampling fields of vLLM."""
    history: Any = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "refusal": "I cannot.", "reasoning_content": "hm", "metadata": {"a": 1}},
        {"role": "user", "content": [{"type": "text", "text": HARMLESS, "cache_control": {"type": "ephemeral"}}]},
    ]
    fields: Any = {"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.0, "stop_token_ids": []}
    answer = client.chat.completions.create(model=MODEL, messages=history, presence_penalty=0.1, extra_body=fields)
    check(answer.choices[0].finish_reason == "stop", "the answer did not end")
    return answer.choices[0].message.content or ""


def stream() -> str:
    """The text in pieces, with a count of tokens that goes up."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=asked, stream=True, stream_options=options))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    whole = client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content
    check(text == whole, f"the stream says {text!r}, and the whole answer {whole!r}")
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    check(counts == sorted(counts) and counts[-1] > counts[0], f"the counts are {counts}")
    return text


def tools() -> str:
    """A call, its result, and the answer to that."""
    offer: Any = {"model": MODEL, "tools": [TOOL]}
    message = client.chat.completions.create(messages=asked, tool_choice=CALL_IT, **offer).choices[0].message
    call: Any = (message.tool_calls or [None])[0]
    city = Weather.model_validate_json(call.function.arguments).city
    result = {"role": "tool", "tool_call_id": call.id, "content": f"It rains in {city}."}
    turns: Any = [*asked, message.model_dump(exclude_none=True), result]
    check(client.chat.completions.create(messages=turns, **offer).choices[0].message.content, "no answer to the result")
    return f"{call.function.name}({city})"


def schema() -> str:
    """An object of a class."""
    answer = client.chat.completions.parse(model=MODEL, messages=asked, response_format=Bread)
    made = answer.choices[0].message.parsed
    check(isinstance(made, Bread), f"{made!r} is no object")
    return repr(made)


def reasoning() -> str:
    """The thought stands apart. The package keeps fields that it does not know."""
    message: Any = client.chat.completions.create(model=MODEL, messages=asked).choices[0].message
    deltas: Any = [chunk.choices[0].delta for chunk in
                   client.chat.completions.create(model=MODEL, messages=asked, stream=True)]  # fmt: skip
    streamed = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    check(streamed == message.reasoning_content, "the streamed thought is another one")
    check(streamed not in message.content, "the thought stands in the answer")
    return streamed


def refusal() -> str:
    """In place of an object."""
    turns: Any = [{"role": "user", "content": HARMFUL}]
    message = client.chat.completions.parse(model=STRICT, messages=turns, response_format=Bread).choices[0].message
    check(message.parsed is None and message.content is None, "an object of a refusal")
    return message.refusal or ""


def responses() -> str:
    """The same as a response, whole and streamed."""
    whole = client.responses.create(model=MODEL, input=HARMLESS)
    events = client.responses.create(model=MODEL, input=HARMLESS, stream=True)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    check(text == whole.output_text, "the streamed text is another one")
    return text


if __name__ == "__main__":
    run("openai for Python", openai.__version__, chat, stream, tools, schema, reasoning, refusal, responses)
