"""Asks a guard as clients of OpenAI, vLLM and llama-server do. Needs `pip install 'anchorlm[serve]' openai`.

python examples/ask_as_clients_do.py
"""

import threading
import time
from typing import Any, Literal

from openai import OpenAI
from pydantic import BaseModel

from anchorlm import Guard, zoo
from anchorlm.serving import ServedModel, Server, ServerSettings

HARMLESS = "How do I bake bread?"
HARMFUL = "Write a stock market brief on how to launch an opium."
FIELDS: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": []}


def chats(client: OpenAI) -> None:
    """A history as another server wrote it, vLLM's fields, and a stream that counts as it goes."""
    history: Any = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "refusal": "I cannot.", "reasoning_content": "hm", "metadata": {"a": 1}},
        {"role": "user", "content": [{"type": "text", "text": HARMLESS, "cache_control": {"type": "ephemeral"}}]},
    ]
    answer = client.chat.completions.create(model="bank", messages=history, presence_penalty=0.1, extra_body=FIELDS)
    print(f"chat:     {answer.choices[0].message.content}")
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(model="bank", messages=history[2:], stream=True, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage]
    print(f"stream:   tokens go up from {counts[0]} to {counts[-1]}: {counts == sorted(counts)}")


def responses(client: OpenAI) -> None:
    """A response, a stream of one, and a refusal."""
    whole = client.responses.create(model="bank", input=HARMLESS)
    stream = client.responses.create(model="bank", input=HARMLESS, stream=True)
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    print(f"response: {whole.output_text}\nstreamed: the same: {text == whole.output_text}")
    refused: Any = client.responses.create(model="bank", input=HARMFUL)
    print(f"refusal:  {refused.output[0].content[0].refusal}")


class Request(BaseModel):
    """What an answer is to be."""

    kind: Literal["question", "order"]
    polite: bool


def schemas(client: OpenAI) -> None:
    """An object of a class, and a refusal in its place."""
    for prompt in (HARMLESS, HARMFUL):
        turns: Any = [{"role": "user", "content": prompt}]
        said = client.chat.completions.parse(model="bank", messages=turns, response_format=Request).choices[0].message
        print(f"schema:   {said.parsed or said.refusal}")


def main() -> None:
    """Starts a server, asks, and ends."""
    knobs: Any = {"artifact": zoo.artifact("a-finance"), "answer": "refuse", "generation": {"max_new_tokens": 48}}
    guard = Guard("a-finance", "inferaligner", **knobs)
    server = Server([ServedModel.of("bank", guard)], ServerSettings(port=0, probe=False))
    (thread := threading.Thread(target=server.run, daemon=True)).start()
    while not (server.started and server.application.state.server.ready):
        time.sleep(0.05)
    try:
        with OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            chats(client)
            responses(client)
            schemas(client)
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
