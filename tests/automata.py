"""Models that say what they are told: the next token depends on the last one alone. For tests of what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorlm.engine import LocalEngine
from anchorlm.models import CausalModel

PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SURE = 20.0


def automaton(
    chunks: Sequence[str],
    *,
    odds: Mapping[str, Mapping[str, float]] | None = None,
    template: str = PLAIN,
    specials: Sequence[str] = (),
    name: str = "automaton",
    context: int = 8192,
) -> LocalEngine:
    """A model that says `chunks`, whatever it is asked, and ends its turn.

    Args:
        chunks: What it says, a token each; no two alike.
        odds: Logits of what else may come in the place of a chunk, and of the chunk; 20 is what a chunk has by itself.
        template: Its chat template.
        specials: Further control tokens.
        name: Of the model.
        context: Positions.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    controls = ["<|end|>", "<|user|>", "<|assistant|>", *specials]
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    others = [word for place in (odds or {}).values() for word in place]
    said = list(dict.fromkeys([*chunks, *others]))
    raw.add_tokens([AddedToken(text, special=False, normalized=False) for text in said if len(text) > 1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    tokenizer.chat_template = template

    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=2, max_position_embeddings=context, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = {text: tokenizer.convert_tokens_to_ids(raw.encode(text, add_special_tokens=False).tokens[0]) for text in said}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.norm.weight.fill_(1.0)
        head = model.lm_head.weight
        scale = size**0.5  # what the norm makes of a one-hot vector
        for chunk, after in zip(chunks, [*chunks[1:], None], strict=True):
            for word in {chunk, *(odds or {}).get(chunk, {})}:
                _after(head[:, ids[word]], ids, tokenizer.eos_token_id, after, odds or {}, scale)
        rest = [index for index in range(size) if index not in {ids[text] for text in said}]
        for index in rest:
            _after(head[:, index], ids, tokenizer.eos_token_id, chunks[0], odds or {}, scale)
    return LocalEngine(CausalModel.wrap(model, tokenizer, name=name))


def _after(
    column: torch.Tensor,
    ids: Mapping[str, int],
    end: int,
    chunk: str | None,
    odds: Mapping[str, Mapping[str, float]],
    scale: float,
) -> None:
    """Logits after one token: the chunk that comes next, or what may stand in its place, or the end."""
    if chunk is None:
        column[end] = _SURE / scale
        return
    for word, logit in {chunk: _SURE, **odds.get(chunk, {})}.items():
        column[ids[word]] = logit / scale
