"""A small server in the manner of SGLang's, in this process: it names tokens by texts that several of them share."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from endpoints import Endpoint, send
from factories import CHAT_TEMPLATE, SPECIALS, sentencepiece_bpe
from transformers import PreTrainedTokenizerFast

from anchorlm.models import CausalModel

_PARAMS = {"max_new_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
           "repetition_penalty"}  # fmt: skip
_TEXT = "The fox and the other fox bake the bread. A fat baker ate that bread there, and then the baker rested.\n"


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a token that is decoded alone loses the space before it, so "▁the" and "the" are one text."""
    tokenizer = sentencepiece_bpe([_TEXT * 20], [*SPECIALS, "<unk>"], vocab_size=80)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )


class Sglang(Endpoint):
    """Serves one model as SGLang does.

    Args:
        model: Which.
        native: Whether its own interface can be reached.

    Attributes:
        weights: What it says of the weights that it holds.
        over: Whether it was asked for more likeliest tokens than there are.
    """

    def __init__(self, model: CausalModel, *, native: bool = True, **options: Any) -> None:
        super().__init__(model, form="names", owner="sglang", tokenizes=True, **options)
        self.native = native
        self.weights = {"model_path": "somewhere", "weight_version": "default"}
        self.over = False

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/model_info" and not self._barred(handler):
            return send(handler, 200, self.weights)
        return super()._get(handler)

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path != "/generate":
            return super()._post(handler)
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.asked.append(("/generate", body, dict(handler.headers)))
        params, top = body["sampling_params"], body["top_logprobs_num"]
        self.over |= top > self.model.vocab_size
        if self._barred(handler):
            return None
        if not self.native:
            return send(handler, 404, {"detail": "Not Found"})
        if unknown := set(params) - _PARAMS:
            return send(handler, 400, {"error": f"unknown field {sorted(unknown)}"})
        asked = {"max_tokens": params["max_new_tokens"], "temperature": params["temperature"]}
        ((token, (own, pairs)),) = self._steps(body["input_ids"], asked, top)
        info = {
            "finish_reason": {"type": "stop" if token in self.model.stop_ids else "length"},
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": 1,
            "output_token_logprobs": [[own, token, None]],
            "output_top_logprobs": [[[value, index, None] for index, value in pairs]],
        }
        text = self.model.vocabulary.token_bytes(token).decode("utf-8", "replace")
        return send(handler, 200, {"text": text, "output_ids": [token], "meta_info": info})

    def _name(self, token: int) -> str:
        text = str(self.model.tokenizer.decode([token]))
        data = self.model.vocabulary.token_bytes(token)
        lost = "\ufffd" in text and self.model.vocabulary.scheme == "byte-level"
        return data.decode("latin-1") if lost else text
