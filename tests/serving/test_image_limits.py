from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from factories import tiny_model
from llava import picture, save_llava, shown
from PIL import Image
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.models import CausalModel
from anchorlm.serving import ApiError, ServedModel
from anchorlm.serving.http._messages import conversation
from anchorlm.serving.http._turns import ChatMessage
from anchorlm.serving.session._pictures import load_images, pictures


def url(width: int = 4, height: int = 4, cut: int = 0) -> str:
    file = BytesIO()
    Image.new("L", (width, height), 200).save(file, "PNG")
    data = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(data[: len(data) - cut]).decode()


def turn(*urls: str) -> list[ChatMessage]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each}} for each in urls]
    return [ChatMessage.model_validate({"role": "user", "content": [{"type": "text", "text": "What?"}, *parts]})]


def test_images_come_along_and_are_decoded_only_when_told() -> None:
    turns = conversation(turn(url(6, 4), url(2, 3)), images=True)
    images = pictures(turns)
    assert [image.size for image in images] == [(6, 4), (2, 3)]
    load_images(images)
    assert images[0].getpixel((5, 3)) == 200
    assert pictures("a raw prompt") == []


@pytest.mark.parametrize("address", ["http://169.254.169.254/latest", "file:///etc/passwd", "data:text/html;base64,"])
def test_images_are_not_fetched(address: str) -> None:
    with pytest.raises(ApiError, match="not fetched"):
        conversation(turn(address), images=True)


@pytest.mark.parametrize(
    ("urls", "sentence"),
    [
        (["data:image/png;base64,%%%"], "cannot be read"),
        (["data:image/png;base64,AAAA"], "cannot be read"),
        ([url()] * 9, "8 images"),
        ([url(5_000, 4_000)], "16 megapixels"),
        ([url(3_000, 3_000)] * 2, "16 megapixels"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused_before_it_is_decoded(
    urls: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)
    with pytest.raises(ApiError, match=sentence) as caught:
        conversation(turn(*urls), images=True)
    assert caught.value.status == 400
    assert decoded == []


def test_a_model_that_takes_no_images_reads_none() -> None:
    with pytest.raises(ApiError, match="takes no images"):
        conversation(turn("data:image/png;base64,%%%"), images=False)
    assert conversation(turn(), images=False) == [{"role": "user", "content": "What?"}]


def test_a_file_that_ends_too_early_is_told(start_live: Callable[..., Live]) -> None:
    broken = url(64, 64, cut=30)
    with pytest.raises(ApiError, match="cannot be read"):
        load_images(pictures(conversation(turn(broken), images=True)))
    seeing = replace(tiny_model("llama"), processor=object())  # the file is found broken before it is asked anything
    live = start_live([ServedModel.of("seeing", Guard(LocalEngine(seeing)))])
    part = {"type": "image_url", "image_url": {"url": broken}}
    with pytest.raises(openai.BadRequestError, match="cannot be read"):
        live.client().chat.completions.create(model="seeing", messages=[{"role": "user", "content": [part]}])
    assert not live.state.admission.running


def test_an_image_over_http_is_the_image_in_python(start_live: Callable[..., Live], tmp_path: Path) -> None:
    target = LocalEngine(CausalModel.from_pretrained(save_llava(tmp_path)))
    guard = Guard(target, generation={"max_new_tokens": 8})
    live = start_live([ServedModel.of("seeing", guard)])
    said = []
    for number in (1, 5):
        file = BytesIO()
        picture(number).save(file, "PNG")
        address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What is it?"}]
        answer = live.client().chat.completions.create(model="seeing", messages=[{"role": "user", "content": parts}])
        said.append(answer.choices[0].message.content)
        assert said[-1] == guard.chat(shown("What is it?", picture(number))).text
    assert said[0] != said[1]
