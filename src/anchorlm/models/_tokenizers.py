from __future__ import annotations

import json
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from anchorlm.models._gguf import read_header
from anchorlm.models._gguf_tokenizer import gguf_tokenizer
from anchorlm.models._paths import ADAPTER, gguf_file
from anchorlm.models._places import Origin, origin
from anchorlm.models._settings import ModelSettings
from anchorlm.models._template import chosen_template
from anchorlm.records import UserError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Any of these is a tokenizer. A `tokenizer_config.json` alone is none."""


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a checkpoint with one chat template: `chat_template` says which, or gives another.

    What lies with an adapter comes before what lies with its base: tokens and template are what it was trained with.

    Raises:
        UserError: There is none, it is damaged, or gives one id to two tokens.
    """
    found = _bare(settings) or origin(settings)
    places = (*reversed(found.adapters), found.base)
    source = next((place for place in found.adapters[::-1] if _holds_tokenizer(place)), found.base)
    tokenizer = _load(source, found, settings)
    if not tokenizer.is_fast:
        raise UserError(
            f"{settings.path!r} has only a slow tokenizer: convert it once with save_pretrained of its fast class."
        )
    if gguf_file(source) is None:  # there the place of a token is its id
        _check_ids(source, _revision(source, found), settings.path)
    own = next((each for place in places[: places.index(source)] if (each := template_of(place)) is not None), None)
    if own is not None:
        tokenizer.chat_template = own
    elif tokenizer.chat_template is None and source != found.base:
        tokenizer.chat_template = _base_template(found, settings)
    template = settings.chat_template
    if isinstance(tokenizer.chat_template, dict) and (template is None or _is_name(template)):
        return chosen_template(tokenizer, repr(settings.path), template)
    if template is not None:
        tokenizer.chat_template = template if "{" in template else _read_template(template)
    return tokenizer


def _bare(settings: ModelSettings) -> Origin | None:
    """A folder with a tokenizer and no model, as one keeps it for a server that runs the model. None if it is none."""
    folder = Path(settings.path)
    model = any((folder / name).exists() for name in ("config.json", ADAPTER)) or settings.gguf_file is not None
    bare = not model and settings.adapter is None and _holds_tokenizer(settings.path)
    return Origin(settings.path, settings.revision, ()) if bare else None


def entries(adapter: str) -> int:
    """How many entries the tokenizer has that lies with an adapter. 0 where there is none, or it cannot be read."""
    return max((index for _, index in _ids(Path(adapter) / "tokenizer.json")), default=-1) + 1


def template_of(folder: str) -> Any:
    """The chat template that lies in a folder, with a tokenizer or alone. None where there is none."""
    place = Path(folder)
    if (file := place / "chat_template.jinja").is_file():
        return _read_template(str(file))
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            data = json.loads((place / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        found = data.get("chat_template") if isinstance(data, dict) else None
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several by name
            return {each["name"]: each["template"] for each in found}
    return None


def _load(source: str, found: Origin, settings: ModelSettings) -> PreTrainedTokenizerBase:
    if (file := gguf_file(source)) is not None:
        return gguf_tokenizer(read_header(file))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=_revision(source, found), trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:  # what a damaged file makes the libraries raise has no common class
        raise UserError(f"No tokenizer could be loaded from {settings.path!r}{why(error, source)}.") from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # For some architectures transformers makes an empty one where there is no file: every text would be unknown.
        raise UserError(f"No tokenizer could be loaded from {settings.path!r}: download all of its files again.")
    return tokenizer


def _base_template(found: Origin, settings: ModelSettings) -> Any:
    """The template of the base. An adapter that brings no other was trained with it, or with none."""
    try:
        return _load(found.base, found, settings).chat_template
    except UserError:  # the adapter's tokenizer is all there is
        return None


def _revision(source: str, found: Origin) -> str | None:
    return found.revision if source == found.base else None


def _is_name(template: str) -> bool:
    """Whether it says which of several templates, and neither is one nor a file with one."""
    return "{" not in template and not Path(template).is_file()


def _holds_tokenizer(folder: str) -> bool:
    return any((Path(folder) / name).is_file() for name in _FILES)


def _check_ids(source: str, revision: str | None, path: str) -> None:
    """Whether every id stands for one token: the libraries would take one of two, or number them otherwise.

    Raises:
        UserError: Two tokens have one id.
    """
    try:
        file = cached_file(source, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:
        file = None
    known: dict[int, str] = {}
    for token, index in _ids(Path(file)) if file else ():
        if known.setdefault(index, token) != token:
            raise UserError(
                f"The tokenizer of {path!r} gives the id {index} to two tokens, {known[index]!r} and {token!r}: "
                "give each its own in tokenizer.json, or download it again."
            )


def _ids(file: Path) -> list[tuple[str, int]]:
    """Every token of a tokenizer.json with the id that it has there. What is damaged is found where it is loaded."""
    try:
        data = json.loads(file.read_text("utf-8"))
        vocabulary = data["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((each[0], i) for i, each in enumerate(vocabulary))
        )
        return [*pairs, *((token["content"], token["id"]) for token in data.get("added_tokens") or ())]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return []


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The chat template {path!r} is neither Jinja text nor a readable file: {error}.") from None


def why(error: Exception, path: str) -> str:
    """The rest of a sentence: what a library says, and where that knows no remedy, ours."""
    if "ignore_mismatched_sizes" in str(error):
        return ": its weights have other shapes than its config.json says; download all of its files again"
    if isinstance(error, ValueError | ImportError) and not isinstance(error, JSONDecodeError):
        return f": {first_line(error)}"
    local = Path(path).is_dir()
    remedy = "download all of its files again" if local else "check its name, your access and the network"
    return f" ({first_line(error)}): {remedy}"


def first_line(error: Exception) -> str:
    """What a library says at first."""
    return str(error).strip().partition("\n")[0].rstrip(".")
