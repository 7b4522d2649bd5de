from __future__ import annotations

from asyncio import gather
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from anchorlm.engine import Engine, TokenSequence
from anchorlm.models import stamp
from anchorlm.records import Artifact, Messages, UserError
from anchorlm.steering._choices import KIND, Pooling, Reader, Readers
from anchorlm.steering._gate import Gate
from anchorlm.steering._looks import Heard, Look, as_texts, look_activations, looks

LAYERS: dict[Reader, str] = {"target": "gate_layers", "anchor": "reader_gate_layers"}
"""What an artifact calls the layers of each gate."""

BIASES: dict[Readers, str] = {"target": "bias", "anchor": "reader_bias", "both": "both_bias"}
"""What an artifact calls the bias of each gate."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a gate read, and what it decided: of everything that it read of a request, the worst.

    Attributes:
        reader: Who read.
        layers: The blocks that decided.
        scores: The projection after every block, in units of half the distance between the classes.
        score: Their mean over the gate's layers. Where both read, the mean of the two scores.
        threshold: Above which the gate opens.
        open: Whether it does.
        parts: Where both read, what each of them read.
        what: What was read: the request, or a part of it.
        looks: How much was read of it.
    """

    reader: Readers
    layers: tuple[int, ...]
    scores: tuple[float, ...]
    score: float
    threshold: float
    open: bool
    parts: tuple[Reading, ...] = ()
    what: str = ""
    looks: int = 1

    @property
    def data(self) -> Mapping[str, Any]:
        """For the trace."""
        return {
            "reader": self.reader,
            **({"readings": [part.data for part in self.parts]} if self.parts else self._seen),
            "score": round(self.score, 3),
            "threshold": round(self.threshold, 3),
            "open": self.open,
            **({"worst of": self.looks, "which is": self.what} if self.looks > 1 else {}),
        }

    @property
    def _seen(self) -> Mapping[str, Any]:
        return {"layers": list(self.layers), "scores": [round(score, 3) for score in self.scores]}


@dataclass(frozen=True, eq=False)
class GateReader:
    """The gates of a fitted artifact, on the models that it was fitted for.

    Attributes:
        artifact: What was fitted.
        gates: Those that tell harm from the activations of the target, and of the second reader if there is one.
    """

    artifact: Artifact
    gates: Mapping[Reader, Gate]

    @classmethod
    def load(cls, artifact: str | Path | Artifact, target: Engine, anchor: Engine | None = None) -> Self:
        """Takes an artifact and the target to use it on.

        Args:
            artifact: What was fitted, or its folder.
            target: The model that it was fitted on.
            anchor: The second reader that it was fitted on, where its activations are to be read, too.

        Raises:
            UserError: No such artifact, or one that was fitted on another model.
        """
        found = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact, KIND)
        found.require("target", stamp(target.model))
        gates: dict[Reader, Gate] = {"target": _gate(found, "gate")}
        if anchor is not None:
            gates["anchor"] = _gate(found, "reader_gate")
            found.require("reader", stamp(anchor.model))
        return cls(found, gates)

    @property
    def pooling(self) -> Pooling:
        """Where its gates read a prompt."""
        return "both" if self.artifact.settings.get("pooling") == "both" else "end"

    def setting(self, name: str, value: Any) -> Any:
        """A request's value, or the one that was calibrated."""
        return self.artifact.settings[name] if value is None else value

    def check_layers(self, layers: Sequence[int], reader: Reader = "target") -> Sequence[int]:
        """The layers as they are.

        Raises:
            UserError: One that the target, or anyone who reads, does not have, or none.
        """
        depth = len(self.gates[reader].bias)
        if not layers or any(not 0 <= layer < depth for layer in layers):
            raise UserError(f"Layers {list(layers)} are not all among 0 to {depth - 1}, the {reader}'s blocks.")
        return layers

    async def read(
        self,
        request: Messages | str,
        readers: Readers,
        target: Engine,
        anchor: Engine | None = None,
        *,
        row: TokenSequence | None = None,
        bias: float | None = None,
        layers: Sequence[int] | None = None,
        heard: Heard | None = None,
    ) -> Reading:
        """Reads the gate of a request on unsteered activations: of everything that there is to read, the worst decides.

        Where both read, the mean of their two scores of the same look is what counts.

        Args:
            request: A conversation, or a raw text.
            readers: Whose gate.
            target: Runs the target.
            anchor: Runs the other reader, if it reads.
            row: The target's sequence, nothing but the request read.
            bias: Added to the score: the larger, the more often the gate opens. Of the mean, where both read.
            layers: Whose scores are averaged.
            heard: Is told what the anchor would say first, where the anchor reads.

        Raises:
            DefenseError: The activations are not numbers, or a part of the request cannot be read.
        """
        shown = looks(request)
        if readers == "target":
            found = await self._readings("target", target, shown, row=row, layers=layers, bias=bias)
        elif anchor is None:
            raise ValueError("there is nobody but the target to read")
        elif readers == "anchor":
            found = await self._readings("anchor", anchor, as_texts(shown), layers=layers, bias=bias, heard=heard)
        else:
            pairs = await gather(
                self._readings("target", target, shown, row=row, layers=layers),
                self._readings("anchor", anchor, as_texts(shown), layers=layers, heard=heard),
            )
            found = [self._joint(look, parts, bias) for look, *parts in zip(shown, *pairs, strict=True)]
        return replace(max(found, key=lambda one: one.score - one.threshold), looks=len(found))

    async def _readings(
        self,
        reader: Reader,
        engine: Engine,
        shown: Sequence[Look],
        *,
        row: TokenSequence | None = None,
        layers: Sequence[int] | None = None,
        bias: float | None = None,
        heard: Heard | None = None,
    ) -> list[Reading]:
        chosen = tuple(self.check_layers(self.setting(LAYERS[reader], layers), reader))
        readings = []
        seen = await look_activations(engine, shown, row, self.pooling, heard)
        for look, activations in zip(shown, seen, strict=True):
            scores = self.gates[reader].scores(activations)
            score, threshold = float(scores[list(chosen)].mean()), self._threshold(reader, bias)
            opens = not score <= threshold
            readings.append(Reading(reader, chosen, tuple(scores.tolist()), score, threshold, opens, what=look.what))
        return readings

    def _joint(self, look: Look, parts: Sequence[Reading], bias: float | None) -> Reading:
        # The mean, not the surer of the two: errors of models of two families are nearly independent, and average out.
        score, threshold = sum(part.score for part in parts) / 2, self._threshold("both", bias)
        return Reading("both", (), (), score, threshold, not score <= threshold, tuple(parts), look.what)

    def _threshold(self, readers: Readers, bias: float | None) -> float:
        """Above which a gate opens."""
        return -float(self.setting(BIASES[readers], bias))


def _gate(artifact: Artifact, name: str) -> Gate:
    if f"{name}.direction" not in artifact.tensors:
        raise UserError("The artifact has no gate for a second reader: fit it again with `anchorlm fit inferaligner`.")
    return Gate(*(artifact.tensors[f"{name}.{part}"] for part in ("direction", "bias", "scale")))
