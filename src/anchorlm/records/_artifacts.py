from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anchorlm.records._errors import UserError
from anchorlm.records._requests import Messages, prompt_key

if TYPE_CHECKING:
    from torch import Tensor

_DATA, _TENSORS = "artifact.json", "artifact.safetensors"

_MADE_BY = {
    "alignbeam": "anchorlm fit alignbeam",
    "inferaligner": "anchorlm fit inferaligner",
    "inferenceguard": "anchorlm fit inferenceguard",
    "inferenceguard-calibration": "anchorlm calibrate inferenceguard",
}
"""Which command makes an artifact, by its kind."""


@dataclass(frozen=True, slots=True)
class ModelStamp:
    """Identifies a model, so what was fitted on it is never used on another.

    Attributes:
        name: What it was loaded from. Only shown.
        architecture: `model_type` of the text decoder.
        layers: Decoder blocks.
        hidden_size: Width of the residual stream.
        tokenizer: Digest of the vocabulary.
        template: Digest of the chat template, by which prompts are written.
        shapes: Digest of the names and shapes of the weights. Empty where quantization packs them.
        dtype: Number format in which it was loaded.
        sample: Some of its weights. Empty where they were not read, because only the configuration was looked at.
        files: Digest of the files of its weights, adapters included. Empty where it has none. Two models of the same
            files are the same in every number format.
        revision: Commit of the Hub's repository, where it came from there. Only shown, because weights are compared.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    tokenizer: str
    template: str
    shapes: str
    dtype: str
    sample: tuple[float, ...]
    revision: str | None = None
    files: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but where it came from, as plain JSON data: equal for equal models."""
        return {name: value for name, value in asdict(self).items() if name not in ("name", "revision", "files")}

    def difference(self, other: ModelStamp) -> str | None:
        """In what `other` is another model, in a few words. None if it is the same one."""
        for name in ("architecture", "layers", "hidden_size"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name} {its}, not {mine}"
        if self.tokenizer != other.tokenizer:
            return "another tokenizer"
        if self.template != other.template:
            return "another chat template"
        if self.files and other.files:
            return None if self.files == other.files else "other weights"
        if self.shapes != other.shapes and self.shapes and other.shapes:
            return "weights of other shapes"
        if not other.sample:
            return None
        if len(self.sample) != len(other.sample):
            return "other weights"
        # Another number format rounds every weight; a fine-tuned sibling has some that are further away.
        tolerance = 1e-5 if self.dtype == other.dtype else 2**-8
        alike = all(
            abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-7 for a, b in zip(self.sample, other.sample, strict=True)
        )
        return None if alike else "other weights"


def _version() -> str:
    from importlib.metadata import version  # takes a while, and few need it

    return version("anchorlm")


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something fitted: tensors, and everything that tells where they come from.

    A folder with `artifact.safetensors` and `artifact.json`. Never a pickle.

    Attributes:
        kind: What was fitted, such as `inferaligner`.
        models: The models by role (`target`, `anchor`).
        data: Digests and counts of the data.
        settings: The settings that were chosen with it.
        figures: What was measured when it was made.
        tensors: By name.
        library: Version of AnchorLM that made it.
    """

    kind: str
    models: Mapping[str, ModelStamp]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    library: str = field(default_factory=_version)

    @property
    def id(self) -> str:
        """A short digest of tensors and settings: equal artifacts decide alike."""
        digest = hashlib.sha256(json.dumps([self.kind, dict(self.settings)], sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save(self, folder: str | Path) -> Path:
        """Writes the folder. Files of an artifact that was there are replaced.

        Raises:
            UserError: The folder cannot be made.
        """
        from safetensors.torch import save_file

        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{str(folder)!r} cannot be made ({error.strerror}): give another folder.") from None
        # Clones, because safetensors refuses two names for one tensor.
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in self.tensors.items()}, place / _TENSORS)
        data = {
            "kind": self.kind,
            "id": self.id,
            "library": self.library,
            "models": {role: asdict(stamp) for role, stamp in self.models.items()},
            "data": dict(self.data),
            "settings": dict(self.settings),
            "figures": dict(self.figures),
        }
        (place / _DATA).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return place

    @classmethod
    def load(cls, folder: str | Path, kind: str | None = None) -> Self:
        """Reads a folder.

        Args:
            folder: Where it was saved.
            kind: What it must be. None: whatever it is.

        Raises:
            UserError: No artifact, one of another kind, or one whose files do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        data = cls.check(folder, kind)
        try:
            tensors = load_file(Path(folder) / _TENSORS)
            models = {
                role: ModelStamp(**{**stamp, "sample": tuple(stamp["sample"])})
                for role, stamp in data["models"].items()
            }
            found = cls(data["kind"], models, data["data"], data["settings"], data["figures"], tensors, data["library"])
            if found.id != data["id"]:
                raise UserError(f"The artifact in {str(folder)!r} was changed after it had been made: make it again.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            raise _damaged(folder) from None
        return found

    @staticmethod
    def check(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
        """What a folder says of its artifact. No tensor is read, and no heavy library is imported.

        Args:
            folder: Where it was saved.
            kind: What it must be. None: anything.

        Raises:
            UserError: The folder holds no artifact, or one of another kind.
        """
        place = Path(folder)
        try:
            data = json.loads((place / _DATA).read_text(encoding="utf-8"))
            with (place / _TENSORS).open("rb"):
                held = str(data["kind"])
        except OSError:
            how = _MADE_BY.get(kind or "", "anchorlm fit")
            raise UserError(f"{str(folder)!r} holds no artifact that can be read: make one with `{how}`.") from None
        except (ValueError, KeyError, TypeError):
            raise _damaged(folder) from None
        if kind is not None and held != kind:
            raise UserError(f"{str(folder)!r} holds an artifact of {held}, not of {kind}.")
        return {**data, "kind": held}

    def require(self, role: str, stamp: ModelStamp) -> None:
        """Refuses a model on which this was not fitted.

        Raises:
            UserError: It is another model.
        """
        if (difference := self.models[role].difference(stamp)) is not None:
            raise UserError(
                f"This {self.kind} artifact was fitted on the {role} {self.models[role].name}, but {stamp.name} has "
                f"{difference}: fit one for it with `anchorlm fit {self.kind}`."
            )


def _damaged(folder: str | Path) -> UserError:
    return UserError(f"The artifact in {str(folder)!r} is damaged: make it again.")


def instruments(artifact: Artifact) -> dict[str, str]:
    """What told good from bad while an artifact was made, by step: names of judges, scorers and other instruments.

    No report lets them grade a defense that uses the artifact. Fits of InferAligner that did not write it down used the
    refusal matcher.
    """
    if (known := artifact.data.get("instruments")) is not None:
        return {str(step): str(name) for step, name in known.items()}
    if artifact.kind == "inferaligner":
        return {"sign": "refusal-matcher"}
    return {role: str(name) for role in ("cost", "reward") if (name := artifact.figures.get(role))}


def prompts_digest(prompts: Iterable[Messages | str]) -> str:
    """A short digest of a set of prompts, whatever their order and however often one is there."""
    return data_digest(sorted({prompt_key(prompt) for prompt in prompts}))


def data_digest(texts: Iterable[str]) -> str:
    """A short digest of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]
