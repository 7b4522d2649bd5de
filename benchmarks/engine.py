"""Undefended greedy decoding: the engine against transformers' `generate()`, alternating in one run."""

from __future__ import annotations

import asyncio
import statistics

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorlm import zoo
from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel
from anchorlm.records import GenerationSettings
from benchmarks._report import alternate, ratio, report

SHAPES = {
    "3M": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6},
    "30M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 9, "num_attention_heads": 8},
}
VOCABULARY = 2048
LENGTHS = (7, 64, 23, 41, 12, 90, 33, 18, 55, 9, 28, 74, 15, 47, 36, 21)
"""Tokens of the prompts. The single prompt is the fourth."""
NEW_TOKENS = 64
RUNS = 7


def build(shape: str) -> CausalModel:
    """A Llama with random weights. Nothing ends its turn, so that every row writes to the end."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return CausalModel.wrap(LlamaForCausalLM(config).eval(), tokenizer, name=f"llama-{shape}")


def with_generate(model: CausalModel, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Left-padded, as a user of transformers would run it."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return [_until(row[width:].tolist(), model.stop_ids) for row in output]


def _until(ids: list[int], stops: frozenset[int]) -> list[int]:
    return ids[: next((index for index, token in enumerate(ids) if token in stops), len(ids))]


def with_engine(engine: LocalEngine, prompts: list[list[int]], new: int) -> list[list[int]]:
    """One coroutine for each prompt."""

    async def one(prompt: list[int]) -> list[int]:
        async with engine.open(prompt, room=new) as sequence:
            return list((await sequence.generate(GenerationSettings(max_new_tokens=new))).token_ids)

    async def together() -> list[list[int]]:
        return await asyncio.gather(*map(one, prompts))

    return runtime().run(together())


def compare(name: str, model: CausalModel, count: int, new: int, runs: int) -> list[str | int | float]:
    """One row of the table. Ratios are of neighboring turns."""
    engine = LocalEngine(model, prefix_tokens=0)
    generator = torch.Generator().manual_seed(1)
    lengths = LENGTHS if count == len(LENGTHS) else LENGTHS[3 : 3 + count]
    prompts = [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    texts: dict[str, list[list[int]]] = {}

    def theirs() -> None:
        texts["generate"] = with_generate(model, prompts, new)

    def ours() -> None:
        texts["engine"] = with_engine(engine, prompts, new)

    generate, own = alternate(runs, theirs, ours)
    ratios = [a / b for a, b in zip(generate, own, strict=True)]
    equal = sum(a == b for a, b in zip(texts["generate"], texts["engine"], strict=True)) / count
    seconds = [statistics.median(generate), statistics.median(own)]
    return [name, count, *seconds, ratio(generate, own), min(ratios), max(ratios), equal]


def main() -> None:
    """Prints the table and writes it under `build/bench`."""
    rows = []
    for shape in SHAPES:
        model = build(shape)
        rows += [compare(shape, model, count, NEW_TOKENS, RUNS) for count in (1, len(LENGTHS))]
    if (zoo.members()[1]).size:
        chat = CausalModel.from_pretrained(str(zoo.path("a-chat")))
        rows += [compare("a-chat", chat, count, NEW_TOKENS, RUNS) for count in (1, len(LENGTHS))]
    columns = ["model", "prompts", "generate, s", "engine, s", "times as fast", "lowest", "highest", "equal texts"]
    report("engine", columns, rows)


if __name__ == "__main__":
    main()
