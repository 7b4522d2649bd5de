from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from anchorlm.models._rendering import TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.models._template import message_parts
from anchorlm.records import Messages, UserError, turn_text

_SOURCES = ("image", "path", "base64", "url")


class PromptIds(list[int]):
    """The token ids of a prompt with images, and what the text decoder reads in their place.

    Attributes:
        embeddings: (n, H), one row per id.
    """

    def __init__(self, ids: Sequence[int], embeddings: Tensor) -> None:
        super().__init__(ids)
        self.embeddings = embeddings


class _ReachedError(Exception):
    """A forward has come to the text decoder, and need not go on."""


class ImageReader:
    """Turns conversations with images into what a model's text decoder reads. From there on it is a model like any.

    Args:
        model: With a vision part in front of its text decoder.
        processor: Of the same checkpoint.
        name: For errors.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, name: str) -> None:
        self._model = model
        self._processor = processor
        self._name = name
        self._checked = False

    def encode(self, messages: Messages, clean: Callable[[str], str]) -> list[int]:
        """The prompt of a conversation, ready for the model's answer. `PromptIds` where there are images in it.

        Raises:
            UserError: An image that cannot be read, a conversation that does not suit the chat template, or a model
                whose decoder takes more from its images than their embeddings.
        """
        contents = [[_cleaned(part, clean) for part in message_parts(turn, images=True)] for turn in messages]
        for parts in contents:
            texts = [part["text"] for part in parts if part["type"] == "text"]
            # A template may join what was cleaned apart.
            for joint in ("".join(texts), "".join(text.strip() for text in texts)):
                if clean(joint) != joint:
                    raise UserError("The parts of a message make a control token together: leave it out.")
        turns = [{"role": turn["role"], "content": parts} for turn, parts in zip(messages, contents, strict=True)]
        if not turns or not any(part["type"] == "image" or part["text"].strip() for part in turns[-1]["content"]):
            raise UserError("The prompt is empty: give at least one message with some text or an image.")
        images = [_image(part) for turn in turns for part in turn["content"] if part["type"] == "image"]
        text = self._written([_marked(turn) for turn in turns], len(images))
        if not images:
            return list(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        try:
            inputs = self._processor(text=text, images=images, add_special_tokens=False, return_tensors="pt")
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            why = str(error).partition("\n")[0][:200].rstrip(".")
            raise UserError(f"{self._name} cannot read these images ({why}): try others, or fewer.") from None
        weight = self._model.get_input_embeddings().weight
        inputs = inputs.to(weight.device, dtype=weight.dtype)  # of the ids nothing but the device changes
        return PromptIds(inputs["input_ids"][0].tolist(), self._embeddings(inputs))

    def _written(self, turns: list[dict[str, Any]], images: int) -> str:
        """The rendered conversation, in which all its words and a place for each image can be found."""
        # A template that drops the system role gets its text at the head of the next turn.
        head, *rest = turns
        options = [turns]
        if head["role"] == "system" and rest:
            options.append([{**rest[0], "content": [*head["content"], *rest[0]["content"]]}, *rest[1:]])
        if not images:  # a template may know contents that are texts, or lists of parts, or both
            options = [[{**turn, "content": turn_text(turn)} for turn in option] for option in options] + options
        place = getattr(self._processor, "image_token", "")
        words = [part["text"].strip() for turn in turns for part in turn["content"] if part["type"] == "text"]
        for option in options:
            with suppress(TemplateRefusedError, TemplateFailedError):
                text = rendered(self._processor.tokenizer, option, template=self._processor.chat_template)
                if all(each in text for each in words) and (not place or text.count(place) == images):
                    return text
        raise UserError(
            f"The chat template of {self._name} does not write all parts of this conversation: give it in another "
            "order, or give another chat_template."
        )

    @torch.inference_mode()
    def _embeddings(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the text decoder is given (n, H): the model's own forward as far as there."""
        with self._decoder_inputs(stop=self._checked) as found, suppress(_ReachedError):
            output = self._model(**inputs, use_cache=False)
        if not found:
            raise UserError(f"{self._name} gives its text decoder no embeddings: use it without images.")
        if not self._checked:
            self._check(output.logits[0, -1].float(), found[0])
            self._checked = True
        return found[0][0]

    @contextmanager
    def _decoder_inputs(self, *, stop: bool) -> Iterator[list[Tensor]]:
        found: list[Tensor] = []

        def keep(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
            if kwargs.get("inputs_embeds") is not None:
                found.append(kwargs["inputs_embeds"])
                if stop:
                    raise _ReachedError

        handle = self._model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()

    def _check(self, expected: Tensor, embeddings: Tensor) -> None:
        """Once per model: some decoders also take positions or masks from the images, which rows do not carry."""
        got = self._model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].float()
        tolerance = 1e-3 if embeddings.dtype == torch.float32 else 0.25
        if not float((got - expected).abs().max()) <= tolerance * float(expected.std()):
            raise UserError(
                f"The decoder of {self._name} takes more from images than their embeddings, which is not served: use "
                "it without images, or a LLaVA-type model."
            )


def _cleaned(part: dict[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    return {**part, "text": clean(part["text"])} if part["type"] == "text" else part


def _image(part: Mapping[str, Any]) -> Any:
    """The image of a part, as PIL's. Nothing is downloaded."""
    from transformers.image_utils import load_image

    source = next((part[name] for name in _SOURCES if part.get(name) is not None), None)
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        raise UserError("An image is given by its address, but none is downloaded here: give the file, or base64.")
    try:
        return load_image(source if source is None or hasattr(source, "convert") else str(source))
    except Exception as error:  # an image decoder may raise anything
        raise UserError(
            f"An image of the conversation cannot be read ({type(error).__name__}): give a PIL image, a file, or the "
            "base64 text of one."
        ) from None


def _marked(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as templates know it: an image is a place, whatever it shows."""
    parts = [part if part["type"] == "text" else {"type": "image"} for part in turn["content"]]
    return {"role": turn["role"], "content": parts}
