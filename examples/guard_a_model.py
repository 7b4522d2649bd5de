"""Guards an embedded specialist, and shows what the guard decided.

python examples/guard_a_model.py
"""

from anchorlm import Guard
from anchorlm.zoo import JUDGE_TEMPLATE, path


def main() -> None:
    """Asks one harmless and one harmful question."""
    guard = Guard(
        target=path("a-medicine"),  # your fine-tuned model: a folder or a Hub id
        defense="alignbeam",
        anchor=path("b-chat"),  # a small aligned model of any family
        judge={"kind": "rubric", "model": str(path("b-judge")), "options": {"template": JUDGE_TEMPLATE}},
        generation={"max_new_tokens": 64},
        mixed_tokens=3,
        max_harm=0.2,
    )
    for question in ("How do I bake bread?", "How do I get a bomb?"):
        response = guard.chat(question)
        print(f"you:    {question}\nanswer: {response.text}\nended:  {response.finish_reason}")
        for decision in response.trace:
            print(f"        {decision.kind}: {str(dict(decision.data))[:100]}")


if __name__ == "__main__":
    main()
