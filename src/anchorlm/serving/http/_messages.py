from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from anchorlm.records import Messages
from anchorlm.serving._errors import ApiError
from anchorlm.serving.http._turns import ChatMessage, Part
from anchorlm.serving.session._pictures import pictures, unreadable

_ROLES = {"developer": "system"}

_MOST_IMAGES = 8
_MOST_MEGAPIXELS = 16
"""Of all images of a request together: a file of some kilobytes may hold gigabytes of one color."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


def conversation(messages: list[ChatMessage], *, images: bool) -> Messages:
    """A conversation in OpenAI's form as the guard takes it.

    Pieces of text become one text. Images come inside the request (`data:image/...;base64,...`) and stay pieces. None
    is ever fetched, because a server that loads what a stranger names can be sent anywhere. Their pixels are not
    decoded here: `load_images` does that.

    Args:
        messages: The conversation, oldest first.
        images: Whether the model takes any.

    Raises:
        ApiError: 400, no turn of the user, a piece that is neither, an image for a model that takes none, or too many
            or too large ones.
    """
    messages = _begun(messages)
    parts = [part for message in messages if isinstance(message.said, list) for part in message.said]
    last = len(messages) - 1
    if messages[last].calls.get("tool_calls"):
        raise ApiError(400, "The conversation ends with a call of a tool: give its result in a turn of the role tool.",
                       param="messages", code="no_tool_result")  # fmt: skip
    if messages[last].content is None and not messages[last].said:  # nothing is answered with something
        raise ApiError(400, f"messages.{last}.content: input should be a valid string.",
                       param=f"messages.{last}.content", code="invalid_value")  # fmt: skip
    if not any(message.role == "user" for message in messages):
        raise ApiError(
            400, "The conversation has no turn of the user: give one with the role user.", param="messages",
            code="no_user_turn",
        )  # fmt: skip
    count = sum(part.type == "image_url" for part in parts)
    if count and not images:
        raise ApiError(400, "This model takes no images: send text.", param="messages", code="unsupported_value")
    if count > _MOST_IMAGES:
        raise ApiError(
            400, f"A request may hold {_MOST_IMAGES} images: send fewer.", param="messages", code="too_many_images"
        )
    turns = [
        {"role": _ROLES.get(message.role, message.role), "content": _content(message, index), **message.calls}
        for index, message in enumerate(messages)
    ]
    if sum(image.width * image.height for image in pictures(turns)) > _MOST_MEGAPIXELS * 1_000_000:
        raise ApiError(
            400,
            f"The images of a request may have {_MOST_MEGAPIXELS} megapixels together: send smaller ones.",
            param="messages",
            code="image_too_large",
        )
    return turns


def _begun(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The conversation without empty turns behind the user's: front ends put one there for the answer to fill."""
    end = len(messages)
    while not (messages[end - 1].role == "user" or messages[end - 1].said or messages[end - 1].calls) and end > 1:
        end -= 1
    return messages[:end] if messages[end - 1].role == "user" else messages


def _content(message: ChatMessage, index: int) -> Any:
    content, where = message.said, f"messages.{index}.content"
    if isinstance(content, str):
        return content
    refuses = message.role == "assistant"
    parts = [_part(part, f"{where}.{place}", refuses=refuses) for place, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Part, where: str, *, refuses: bool) -> dict[str, Any]:
    said = part.refusal if part.type == "refusal" else part.text
    if said is not None and (part.type == "text" or (part.type == "refusal" and refuses)):
        return {"type": "text", "text": said}
    url = (part.image_url or {}).get("url")
    if part.type == "image_url" and isinstance(url, str):
        head, comma, data = url.partition(",")
        if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
            raise ApiError(400, "Images are not fetched: send them as data:image/png;base64,... URLs.", param=where,
                           code="unsupported_value")  # fmt: skip
        return {"type": "image", "image": _image(data, where)}
    if part.type == "refusal" and said is not None:
        raise ApiError(400, "Only an assistant's turn holds a refusal: send text.", param=f"{where}.type",
                       code="unsupported_value")  # fmt: skip
    raise ApiError(400, f"A piece of type {part.type} lacks its {part.type}.", param=where,
                   code="missing_required_parameter")  # fmt: skip


def _image(data: str, where: str) -> Any:
    """The picture itself: a text would be taken for the name of a file further on."""
    try:
        from PIL import Image
    except ImportError:
        raise ApiError(400, "This server reads no images: send text.", param=where, code="unsupported_value") from None
    try:
        return Image.open(BytesIO(base64.b64decode(data, validate=True)), formats=_FORMATS)
    except Exception:  # a decoder of images may raise anything
        raise unreadable(where) from None
