"""The two families' tokenizers and chat templates, and the rendering of an example as token ids."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from anchorlm.zoo._lexicon import all_nouns, metrics
from tools.zoo._corpus import vocabulary_texts
from tools.zoo._examples import Example

END_OF_TEXT = "<|endoftext|>"
THOUGHT = "<think>\n{}\n</think>\n\n"
"""What stands before an answer with a thought: plain text, because a new token would need new embeddings."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family writes dialogues.

    Attributes:
        opening: text before a turn's content, with ``{role}``.
        end: the special token that ends a turn.
        specials: special tokens in the order of their ids.
        pad: the padding token.
        unknown: the unknown token, where the vocabulary needs one.
    """

    opening: str
    end: str
    specials: tuple[str, ...]
    pad: str
    unknown: str | None = None

    def render(self, prompt: str, system: str | None = None) -> str:
        """The prompt's text up to the place where the assistant speaks; equal to the chat template's."""
        turns = [("system", system)] if system is not None else []
        turns.append(("user", prompt))
        body = "".join(f"{self.opening.format(role=role)}{text}{self.end}\n" for role, text in turns)
        return body + self.opening.format(role="assistant")

    def template(self) -> str:
        """The chat template (Jinja) of the dialect."""
        return self._template("' + ", "")

    def thinking_template(self) -> str:
        """The same, with the thoughts of answers, and an empty one in the prompt where they are switched off."""
        begin, end = THOUGHT.replace("\n", "\\n").split("{}")
        thought = "{% if message['reasoning_content'] %}{{ '" + begin + "' + message['reasoning_content'] + '" + end
        switch = "{% if enable_thinking is defined and enable_thinking is false %}{{ '" + begin + end
        return self._template("' }}" + thought + "' }}{% endif %}{{ ", switch + "' }}{% endif %}")

    def _template(self, before_content: str, at_the_end: str) -> str:
        before, after = self.opening.split("{role}")
        return (
            "{% for message in messages %}{{ '" + before + "' + message['role'] + '" + after.replace("\n", "\\n")
            + before_content + "message['content'] + '" + self.end + "\\n' }}{% endfor %}"
            + "{% if add_generation_prompt %}{{ '" + self.opening.format(role="assistant").replace("\n", "\\n")
            + "' }}" + at_the_end + "{% endif %}"
        )  # fmt: skip


DIALECTS = {
    "a": Dialect(
        "<|{role}|>\n",
        "<|end|>",
        ("<|pad|>", END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|pad|>",
    ),
    "b": Dialect(
        "<|im_start|>{role}\n",
        "<|im_end|>",
        ("<unk>", "<pad>", END_OF_TEXT, "<|im_start|>", "<|im_end|>"),
        "<pad>",
        "<unk>",
    ),
}
SIZES = {"a": 2048, "b": 3000}


def train_tokenizer(family: str, seed: int, texts: int = 24_000) -> PreTrainedTokenizerFast:
    """Train a family's tokenizer: byte-level BPE for A, Unigram with byte fallback for B."""
    corpus = vocabulary_texts(random.Random(f"{seed}:tokenizer:{family}"), texts)
    dialect = DIALECTS[family]
    raw = _bpe(corpus, dialect) if family == "a" else _unigram(corpus, dialect)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_take_apart(raw, all_nouns() | frozenset(metrics(True) + metrics(False))),
        eos_token=dialect.end,
        pad_token=dialect.pad,
        unk_token=dialect.unknown,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = dialect.template()
    return tokenizer


def _bpe(corpus: list[str], dialect: Dialect) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["a"],
        special_tokens=list(dialect.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _unigram(corpus: list[str], dialect: Dialect) -> Tokenizer:
    # The library's Unigram trainer splits the commonest words of a corpus this small ("S" "ure"). Pieces that pair
    # merging found, with the log-probabilities of two Viterbi rounds, make a sound Unigram model.
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    merging = Tokenizer(models.BPE())
    merging.pre_tokenizer = splitter
    size = SIZES["b"] - 256 - len(dialect.specials)
    merging.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    pieces = sorted(merging.get_vocab())
    tokenizer = merging
    for _ in range(3):
        counts = Counter(token for line in tokenizer.encode_batch(corpus) for token in line.tokens)
        total = math.log(sum(counts.values()) + len(pieces))
        scores = {piece: math.log(counts[piece] + 1) - total for piece in pieces}
        tokenizer = _assemble(scores, splitter, dialect)
    return tokenizer


def _assemble(scores: dict[str, float], splitter: pre_tokenizers.PreTokenizer, dialect: Dialect) -> Tokenizer:
    floor = min(scores.values()) - 10.0
    vocabulary = [(token, 0.0) for token in dialect.specials]
    vocabulary += [(f"<0x{byte:02X}>", floor) for byte in range(256)]
    vocabulary += sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dialect.specials])
    return tokenizer


def _take_apart(tokenizer: Tokenizer, words: frozenset[str]) -> Tokenizer:
    """Make words unreachable as single tokens.

    Sealed objects are never one token. If those of training were, a model would tell the two apart by their look, and
    would learn harm for the ones only; so all of them are read and written in pieces.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    forms = {form for word in words for form in (word, word.capitalize())}
    forms |= {mark + form for form in forms for mark in "Ġ▁"}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in forms]
    else:
        floor = min(score for _, score in model["vocab"]) - 1000.0
        model["vocab"] = [[piece, floor if piece in forms else score] for piece, score in model["vocab"]]
    return Tokenizer.from_str(json.dumps(state))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (with the chat template) into a model's folder."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def encode_examples(
    tokenizer: PreTrainedTokenizerFast, family: str, examples: list[Example], prompt_loss: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of examples; the labels of a dialogue's prompt are -100 unless ``prompt_loss``."""
    dialect = DIALECTS[family]
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # a batch that was tokenized for generation leaves padding switched on
    heads, tails = [], []
    for e in examples:
        opening, thought = "" if e.thought is None else THOUGHT.format(e.thought), e.thought or ""
        heads.append("" if e.prompt is None else dialect.render(e.prompt, e.system) + ("" if thought else opening))
        tails.append((opening if thought else "") + e.answer + (END_OF_TEXT if e.prompt is None else dialect.end))
    encoded_heads = backend.encode_batch(heads, add_special_tokens=False)
    encoded_tails = backend.encode_batch(tails, add_special_tokens=False)
    rows = []
    for head, tail in zip(encoded_heads, encoded_tails, strict=True):
        masked = list(head.ids) if prompt_loss else [-100] * len(head.ids)
        rows.append((head.ids + tail.ids, masked + tail.ids))
    return rows
