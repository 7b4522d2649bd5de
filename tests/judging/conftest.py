from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorlm.engine import LocalEngine
from anchorlm.models import CausalModel

CONTROLS = ["<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte and three control tokens, of which only one has a role."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROLS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def grader(byte_tokenizer: PreTrainedTokenizerFast) -> Callable[..., LocalEngine]:
    """Random models that can say only the characters of an alphabet, which of them depending on all that they read.

    With `alone` they hardly ever say anything else, however small the spread.
    """

    def make(alphabet: str, *, context: int = 1024, spread: float = 3.0, alone: bool = False) -> LocalEngine:
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=len(byte_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.4,
            bos_token_id=None, eos_token_id=byte_tokenizer.eos_token_id, pad_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        said = [byte_tokenizer.convert_tokens_to_ids(char) for char in alphabet]
        with torch.no_grad():
            weights = torch.randn(len(said), 32) * spread
            model.lm_head.weight.zero_()
            model.lm_head.weight[said] = weights - weights.mean(0)  # zero-sum: one of them beats the others' zero
        if alone:
            bias = torch.full((len(byte_tokenizer),), -30.0)
            bias[said] = 0.0
            model.lm_head.bias = torch.nn.Parameter(bias)
        return LocalEngine(CausalModel.wrap(model, byte_tokenizer, name="grader"))

    return make
