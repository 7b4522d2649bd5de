from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anchorlm.records import Messages
from anchorlm.serving._errors import ApiError


def pictures(messages: Messages | str) -> list[Any]:
    """The images of a conversation."""
    contents = [] if isinstance(messages, str) else [turn["content"] for turn in messages]
    return [
        part["image"] for content in contents if not isinstance(content, str) for part in content if "image" in part
    ]


def load_images(images: Sequence[Any]) -> None:
    """Decodes the pixels, which takes its time: not for the event loop.

    Raises:
        ApiError: 400, a file that is broken.
    """
    try:
        for image in images:
            image.load()
    except Exception:  # a decoder of images may raise anything
        raise unreadable("messages") from None


def unreadable(where: str) -> ApiError:
    """What a client is told of a broken image."""
    return ApiError(
        400, "An image cannot be read: send a PNG or JPEG file in base64.", param=where, code="invalid_image"
    )
