from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from anchorlm.records._errors import UserError
from anchorlm.records._formats import Format

_SHOWN = 200
"""Characters of a value that an error repeats."""
_USER = re.compile(r"""(?:(?<=://).*|[^\s'"]*:\S*)(?=@)""")
"""User and password in an address, which an error does not repeat."""
_QUERY = re.compile(r"""(://[^\s?#'"]*[?#])[^\s'"]*""")
"""The same of what stands behind the path, which may be a key."""


class Settings(BaseModel):
    """A frozen set of named values; an unknown name or a value out of range is a `UserError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validates `values`.

        Args:
            values: The fields by name.
            where: What the values belong to, for the error ("the defense alignbeam").

        Raises:
            UserError: One sentence that names the field, what is wrong, and the allowed names.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(_one_sentence(cls, error, where)) from None

    @classmethod
    def given(cls, values: Self | Mapping[str, Any] | None, *, where: str) -> Self:
        """Settings that a caller gave as they are, by name, or not at all.

        Raises:
            UserError: As `parse`.
        """
        return values if isinstance(values, cls) else cls.parse(cast("Mapping[str, Any]", values or {}), where=where)

    def replace(self, values: Mapping[str, Any], *, where: str) -> Self:
        """The same settings with some `values` changed, validated as a whole."""
        return self.parse({**self.model_dump(exclude_unset=True), **values}, where=where) if values else self

    @classmethod
    def folders(cls) -> tuple[str, ...]:
        """The fields that name a folder."""
        return tuple(name for name, field in cls.model_fields.items() if _is_place(field))

    @classmethod
    def placed(cls, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The values, with every place in them that begins with a dot as it is seen from a folder: a recipe's, say."""
        return {
            name: _placed(cls.model_fields[name], value, folder) if name in cls.model_fields else value
            for name, value in values.items()
        }


class Place:
    """Marks a type in settings whose text may name a file or a folder: relative to the recipe that says it."""


Folder = Annotated[str, Place(), BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A folder in settings: a text, as in a recipe, or a `Path`."""


def _is_place(field: FieldInfo) -> bool:
    return any(isinstance(one, Place) for one in (*field.metadata, *_marks(field.annotation)))


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks(part)


def _placed(field: FieldInfo, value: Any, folder: Path) -> Any:
    inner = [one for one in _models_in(field.annotation) if issubclass(one, Settings)]

    def within(found: Any) -> Any:
        if isinstance(found, list | tuple):
            return type(found)(map(within, found))
        if isinstance(found, Mapping):
            for one in inner:
                found = one.placed(found, folder)
            return found if inner else {name: within(each) for name, each in found.items()}
        if isinstance(found, str) and found.startswith(("./", "../")) and _is_place(field):
            return str((folder / found).resolve())
        return found

    return within(value)


def _one_sentence(cls: type[Settings], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "the settings"
    if first["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in first["loc"][:-1]) or "it"
        return f"{where} has no setting {name!r}; {place} has: {', '.join(keys_beside(cls, first['loc'])) or 'none'}."
    if first["type"] == "missing":
        field = cls.model_fields.get(name)
        told = f": {field.description.rstrip('.')}" if field is not None and field.description else ""
        return f"{where[:1].upper()}{where[1:]} lacks {name}{told or ': give it'}."
    message = first["msg"].removeprefix("Value error, ")
    given = _QUERY.sub(r"\1...", _USER.sub("...", repr(first["input"])))
    given = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}..."
    return f"{name} = {given} does not fit {where}: {message[:1].lower()}{message[1:].rstrip('.')}."


def keys_beside(cls: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The names that a section of some settings takes, in which an error of pydantic's has found another one.

    Args:
        cls: The settings as a whole.
        place: Where the name stands, from the outside in, as pydantic says it.
    """
    inner: list[type[BaseModel]] = [cls]
    for part in place[:-1]:
        fields = [one.model_fields[part] for one in inner if isinstance(part, str) and part in one.model_fields]
        if fields:
            inner = [found for field in fields for found in _models_in(field.annotation)]
        elif named := [one for one in inner if one.__name__ == part]:  # which of several it was taken for
            inner = named
    return sorted({name for one in inner for name in one.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


MOST_STOP_IDS = 64
"""Tokens that can end an answer besides the model's own."""

PAST_THE_END = "an answer that goes on past its end would defeat the guard"
"""Why nobody may ignore the token that ends a turn."""


class GenerationSettings(Settings):
    """How tokens are chosen, under the Hugging Face names."""

    max_new_tokens: int = Field(default=256, ge=1, description="Longest response, in tokens of the target.")
    do_sample: bool = Field(default=False, description="Sample. Otherwise the most likely token is taken.")
    temperature: float = Field(default=1.0, gt=0, description="Divides the logits before sampling.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample from the smallest set of tokens with this mass.")
    top_k: int | None = Field(default=None, ge=1, description="Sample from this many of the most likely tokens.")
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Sample only from tokens with this share of the most likely one's probability.",
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="Above 1, tokens that were seen before become less likely."
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Taken from the logit of every token that the answer has already."
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="The same, once for each time that the answer has the token."
    )
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        max_length=MOST_STOP_IDS,
        description="Tokens of the target that end the answer. They are no part of it.",
    )
    response_format: Format = Field(
        default=None,
        description='What the answer must be: `{ type = "json_object" }`, or `json_schema` with a schema. By default '
        "any text.",
    )
    ignore_eos: bool = Field(default=False, exclude=True, repr=False, description="Must be false.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="Report each token's log-probability, and those of this many most likely ones.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampling. A request's sample depends on nothing else.")

    @field_validator("ignore_eos")
    @classmethod
    def _ends(cls, ignore_eos: bool) -> bool:
        if ignore_eos:
            raise ValueError(f"{PAST_THE_END}; leave ignore_eos out")
        return ignore_eos

    def identity(self) -> dict[str, Any]:
        """What tells these settings from others, as JSON. What was written down with an earlier version stays valid:
        a setting that came later is named only where it does something.
        """
        later = {name for name in _LATER if getattr(self, name) == GenerationSettings.model_fields[name].default}
        return self.model_dump(mode="json", exclude=later)


_LATER = ("min_p", "presence_penalty", "frequency_penalty", "stop_token_ids", "response_format")
