#!/usr/bin/env bash
# SGLang's completions give a letter and a single byte the same name, and the likelier of the two loses its probability.
#
# Versions: sglang 0.5.23, transformers 5.19.0, tokenizers 0.23.2. Seen on 2026-11-30.
# Guessed: `logprobs` = 5 brings five names for the next token. A byte that is no character alone has a name that no other
#   token has: the source says that its way of naming them avoids collisions.
# Seen: such a byte is named by the character that it would be in Latin-1. The byte A3 is "£", and so is the pound sign.
#   The names are keys of one object, so the last one wins: with "£" at -0.1 and the byte at -9.0, the answer says that "£"
#   has -9.0, and holds one entry less. Byte-level tokenizers, as of Llama 3 and Qwen, have all 256 bytes as tokens, and most
#   of the letters of Latin-1.
# Remedy: ask SGLang's own /generate with `top_logprobs_num`, which names tokens by their ids.
#
# The functions are taken out of the package one by one: to import it whole needs a CUDA build of PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.19.0 tokenizers==0.23.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps sglang==0.5.23
"$folder/venv/bin/python" - 2> /dev/null <<'PY'
import ast
import sysconfig
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

core = Tokenizer(models.BPE())
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
letters = pre_tokenizers.ByteLevel.alphabet()
core.train_from_iterator(["£5 and £7, or £9"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
pound = next(index for index in range(len(tokenizer)) if tokenizer.decode([index]) == "£")
byte = tokenizer.convert_tokens_to_ids("£")  # as byte-level vocabularies write the byte A3
assert pound != byte and tokenizer.decode([byte]) == "\ufffd"

source = Path(sysconfig.get_path("purelib"), "sglang/srt/entrypoints/openai/utils.py").read_text("utf-8")
wanted = {"_build_byte_decoder", "_is_byte_level_tokenizer", "token_id_to_bytes", "to_openai_style_logprobs",
          "_lossless_token_text"}
parts = [part for part in ast.parse(source).body if getattr(part, "name", "") in wanted]
assert {part.name for part in parts} == wanted, "the behaviour has changed"
place = {"_BYTE_DECODER": {}, "_BYTE_LEVEL_TOKENIZERS": set(),
         "LogProbs": lambda: SimpleNamespace(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])}
exec(compile(ast.Module(parts, []), "utils.py", "exec"), place)

top = [[(-0.1, pound, tokenizer.decode([pound])), (-9.0, byte, tokenizer.decode([byte]))]]
told = place["to_openai_style_logprobs"](output_top_logprobs=top, tokenizer=tokenizer).top_logprobs[0]
print("tokens:", {pound: -0.1, byte: -9.0}, "told:", told)
assert told == {"£": -9.0}, "the behaviour has changed"
PY
