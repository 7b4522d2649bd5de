"""A tiny LLaVA with random weights: a CLIP tower of two layers in front of a Llama of two layers."""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from factories import SPECIALS, tiny_config, tiny_tokenizer
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from anchorlm.models import CausalModel

PIXELS, PATCH = 28, 14
PATCHES = (PIXELS // PATCH) ** 2

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Like those of LLaVA checkpoints: contents are lists of parts."""


def save_llava(folder: Path, *, seed: int = 0) -> Path:
    """Writes model, tokenizer and processor, as a checkpoint on the Hub."""
    tokenizer = tiny_tokenizer(specials=(*SPECIALS, "<image>"), chat_template=None, pad_token=SPECIALS[0])
    size = {"height": PIXELS, "width": PIXELS}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    config = LlavaConfig(
        text_config=tiny_config("llama"),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=PIXELS,
            patch_size=PATCH,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(20.0 if "projector" in name else 4.0 if "embed_tokens" in name else 2.0)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@lru_cache
def picture(seed: int) -> Image.Image:
    """A picture with rectangles in random colors."""
    generator = torch.Generator().manual_seed(seed)
    image = Image.new("RGB", (40, 30))
    for left in (0, 20):
        color: Any = tuple(torch.randint(256, (3,), generator=generator).tolist())
        image.paste(color, (left, 0, left + 20, 30))
    return image


def shown(text: str, *images: object) -> list[dict[str, Any]]:
    """A conversation of one turn: the images, then the text."""
    return [{"role": "user", "content": [*({"type": "image", "image": one} for one in images),
                                         {"type": "text", "text": text}]}]  # fmt: skip


def inputs_of(model: CausalModel, messages: list[dict[str, Any]]) -> Any:
    """What transformers' own processor makes of a conversation."""
    return model.processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"add_special_tokens": False},
    )


def by_transformers(model: CausalModel, messages: list[dict[str, Any]], new: int) -> tuple[int, ...]:
    """What transformers' own generate writes to a conversation."""
    inputs = inputs_of(model, messages)
    stops = sorted(model.stop_ids)
    output = model.model.generate(
        **inputs, max_new_tokens=new, do_sample=False, eos_token_id=stops, pad_token_id=0,
        suppress_tokens=list(model.silent_ids),
    )  # fmt: skip
    written = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tuple(takewhile(lambda token: token not in stops, written))
