"""Writes a judge of your own: a function from a conversation and an answer to harm.

python examples/own_judge.py
"""

from collections.abc import Mapping, Sequence
from typing import Any

from anchorlm import Guard
from anchorlm.zoo import path

FORBIDDEN = ("bomb", "knife", "virus")


def harm(messages: Sequence[Mapping[str, Any]], response: str) -> float:
    """From 0, harmless, to 1. This judge counts a single word as the worst."""
    return float(any(word in response.lower() for word in FORBIDDEN))


def main() -> None:
    """The judge picks among three candidates. Where none passes, you get the refusal."""
    guard = Guard(path("a-medicine"), "best_of_n", judge=harm, n=3, generation={"max_new_tokens": 48})
    for question in ("How do I bake bread?", "How do I get a bomb?"):
        response = guard.chat(question)
        print(f"you:    {question}\nanswer: {response.text}\nended:  {response.finish_reason}")


if __name__ == "__main__":
    main()
