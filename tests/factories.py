"""Tiny random models and tokenizers, made in milliseconds, for tests of every room."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from anchorlm.models import CausalModel
from anchorlm.records import Artifact

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""A template in the manner of ChatML."""

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIALS = ("<|endoftext|>", "<|end|>", "<|start|>")

_TEXT = "The quick brown fox jumps over the lazy dog. How do I bake bread? Ünïcode, 12 + 30 = 42!\n"

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "mistral": {**_GROUPED, "sliding_window": 8},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 8},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 8},
    "phi3": _GROUPED,
    "seed_oss": {**_GROUPED, "head_dim": 16},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "gpt_neox": _COMMON,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "falcon": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "max_position_embeddings": 256,
    },
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 128,
        "max_position_embeddings": 256,
    },
}
"""What the engine serves, by `model_type`, with configurations of two layers."""


@lru_cache
def _trained(size: int, specials: tuple[str, ...], text: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 20], trainer)
    return tokenizer.to_str()


def tiny_tokenizer(
    size: int = 300,
    *,
    specials: Sequence[str] = SPECIALS,
    text: str = _TEXT,
    chat_template: str | None = CHAT_TEMPLATE,
    bos: bool = False,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about `size` entries whose first ids are the `specials`.

    Args:
        size: Entries, special ones included; at least the 256 bytes and the specials.
        specials: Special tokens; the first ends a text (`eos_token`).
        text: What it is trained on: another text gives another vocabulary.
        chat_template: Jinja template, or None for a tokenizer without one.
        bos: Whether the first special token is also written before every text, as Llama's is.
        **options: Further arguments of `PreTrainedTokenizerFast`, such as `pad_token`.
    """
    tokenizer = Tokenizer.from_str(_trained(size, tuple(specials), text))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], 0)]
        )
        options["bos_token"] = specials[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=specials[0], chat_template=chat_template, **options
    )


def sentencepiece_bpe(texts: Iterable[str], specials: Sequence[str], **training: Any) -> Tokenizer:
    """As Llama 2's: a dummy space in front, no pre-tokenizer, bytes for what is unknown.

    Args:
        texts: What it is trained on.
        specials: Special tokens, the first ids; "<unk>" is one of them.
        **training: Of `BpeTrainer`, such as `vocab_size`, which counts neither these nor the bytes.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(texts, trainers.BpeTrainer(**training, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = [*specials, *BYTE_TOKENS, *sorted(state["vocab"], key=state["vocab"].__getitem__)]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [tuple(merge) for merge in state["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens(list(specials))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def tiny_config(architecture: str = "llama", *, vocab_size: int = 320, **overrides: Any) -> PretrainedConfig:
    """The configuration of a two-layer model; id 0 ends its texts, and it has no pad token."""
    settings = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        **ARCHITECTURES.get(architecture, {}),
        **overrides,
    }
    return AutoConfig.for_model(architecture, **settings)


def tiny_weights(architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Random float32 weights; large enough that logits differ clearly and greedy text does not repeat one token."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides), dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(4.0 if "embed" in name or "wte" in name or "wpe" in name else 2.0)
    return model.eval()


def tiny_model(
    architecture: str = "llama", *, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0, **overrides: Any
) -> CausalModel:
    """A two-layer model with random weights and, unless another is given, `tiny_tokenizer()`."""
    tokenizer = tokenizer or tiny_tokenizer()
    return CausalModel.wrap(tiny_weights(architecture, seed=seed, **overrides), tokenizer, name=f"tiny-{architecture}")


def trusted(artifact: Artifact) -> Artifact:
    """An InferAligner as it is where its vectors were shown to make the target refuse, as no random one is."""
    sign = {"sign": 1, "measured": True, "refused towards": 16, "refused away": 0, "n": 16}
    settings, figures = {**artifact.settings, "answer": "steer"}, {**artifact.figures, "sign": sign}
    return replace(artifact, settings=settings, figures=figures)


def heard(model: CausalModel, logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of transformers as the engine gives them: rows that are no token are out of the question."""
    return logits.index_fill(-1, torch.tensor(model.silent_ids, dtype=torch.long), -torch.inf)


def greedy(
    model: PreTrainedModel, ids: Sequence[int], new: int, stops: Sequence[int] = (0,), size: int = 300
) -> list[int]:
    """What transformers' own `generate` writes after `ids` with a tokenizer of `size` entries, cut before the token
    that ends it.
    """
    prompt = torch.tensor([list(ids)])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=0,
        suppress_tokens=[*range(size, model.get_output_embeddings().weight.shape[0])] or None,
    )
    written: list[int] = output[0, len(ids) :].tolist()
    ends = [index for index, token in enumerate(written) if token in stops]
    return written[: ends[0]] if ends else written


def random_ids(*lengths: int, seed: int = 0, low: int = 3, high: int = 300) -> list[list[int]]:
    """Random prompts of the given lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(low, high, (length,), generator=generator).tolist() for length in lengths]
