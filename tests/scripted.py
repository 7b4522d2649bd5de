"""Models that write what a test wants, made of weights alone: what comes next depends on the position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from factories import tiny_tokenizer, tiny_weights
from transformers import PreTrainedTokenizerFast

from anchorlm.models import CausalModel

QWEN = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Its model opens a thought by itself."""

OPEN = QWEN.replace("</think>\n\n{% endif %}{% endif %}", "</think>\n\n{% else %}<think>\n{% endif %}{% endif %}")
"""Its prompt ends inside a thought, unless that is switched off."""

HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""Its thoughts and answers are messages of their own."""

MARKS = ("<|endoftext|>", "<|end|>", "<|start|>", "<think>", "</think>", "<|channel|>", "<|message|>")


def thinker(
    write: str | Sequence[str],
    template: str = OPEN,
    *,
    asked: str = "hi",
    specials: Sequence[str] = MARKS,
    positions: int = 512,
    **options: Any,
) -> CausalModel:
    """A model that writes a text after one short question, and then ends its turn.

    Args:
        write: The text; control tokens by their names. Of several pieces, each is a token or more of its own.
        template: Its chat template.
        asked: The question.
        specials: Control tokens of its tokenizer.
        positions: Longest text, prompt included.
        **options: Variables of its template.
    """
    tokenizer = tiny_tokenizer(specials=specials, chat_template=template)
    return scripted(tokenizer, lambda model: model.encode([{"role": "user", "content": asked}], options), write,
                    positions)  # fmt: skip


def scripted(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Callable[[CausalModel], Sequence[int]],
    write: str | Sequence[str],
    positions: int = 512,
) -> CausalModel:
    """As `thinker`, for a tokenizer with its template."""
    size = len(tokenizer)
    weights = tiny_weights(
        "gpt2", vocab_size=size, n_embd=positions, n_positions=positions, n_head=4, n_layer=1, n_inner=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = CausalModel.wrap(weights, tokenizer, name="scripted")
    with torch.no_grad():
        for name, weight in weights.named_parameters():
            if ".h." in name or "wte" in name:
                weight.zero_()
        weights.transformer.wpe.weight.copy_(torch.eye(positions))
    rewrite(model, len(prompt(model)), [write] if isinstance(write, str) else write)
    return model


def rewrite(model: CausalModel, start: int, pieces: Sequence[str]) -> None:
    """Teaches a scripted model another text.

    Args:
        model: Of `scripted`.
        start: Length of the prompt.
        pieces: What it writes then.
    """
    script = [*(token for piece in pieces for token in model.marks.ids(piece)), model.tokenizer.eos_token_id]
    head = model.model.get_output_embeddings().weight
    with torch.no_grad():
        head.zero_()
        head[model.tokenizer.eos_token_id] = 0.01
        for place, token in enumerate(script, start - 1):
            head[token, place] = 10.0
