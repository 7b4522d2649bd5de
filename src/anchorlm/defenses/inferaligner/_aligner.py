from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from anchorlm.engine import Edit, Engine, Positions, Steering, TokenSequence
from anchorlm.records import Messages
from anchorlm.steering import GateReader, Reading, Units, Vector, cosine_scores, look_activations, looks

_KEPT = 64
"""Sets of edits that are kept. A request may choose its own layers, and there are too many choices to keep all."""


@dataclass(frozen=True, eq=False)
class Aligner(GateReader):
    """A fitted artifact on the model that it was fitted for: its gates, and what it adds where they open."""

    _edits: dict[tuple[str, tuple[int, ...]], Mapping[int, Edit]] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Blocks of the target."""
        return len(self.artifact.tensors["shift.length"])

    async def read_cosine(
        self,
        request: Messages | str,
        target: Engine,
        *,
        row: TokenSequence | None = None,
        threshold: float | None = None,
    ) -> Reading:
        """CAST's condition: the cosine with the condition vector at one layer (arXiv 2409.05907, section 3).

        Args:
            request: As in `read`, and read as there.
            target: Runs the target.
            row: The target's sequence, nothing but the request read.
            threshold: Above which the target is steered.
        """
        tensors, layer = self.artifact.tensors, int(self.artifact.settings["cast_layer"])
        limit = float(tensors["cast.threshold"][layer]) if threshold is None else threshold
        shown = looks(request)
        found = []
        for look, activations in zip(shown, await look_activations(target, shown, row), strict=True):
            cosines = cosine_scores(activations, tensors["own.unit"])
            score = float(cosines[layer])
            found.append(Reading("target", (layer,), tuple(cosines.tolist()), score, limit, not score <= limit,
                                 what=look.what))  # fmt: skip
        return replace(max(found, key=lambda one: one.score), looks=len(found))

    def steering(
        self,
        *,
        alpha: float | None = None,
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
        vector: Vector = "anchor",
        units: Units = "natural",
    ) -> Steering:
        """What an open gate adds: `alpha * theta_l` after every steered block (arXiv 2401.11206, section 3).

        Args:
            alpha: Strength.
            layers: The steered blocks.
            positions: Which positions are shifted.
            vector: The anchor's. Or, as controls, the target's own or a random one of equal length.
            units: Of alpha: the vectors' natural lengths, or absolute as in the paper.
        """
        chosen = self._blocks(layers)
        edits = self._shared(f"{vector} {units}", chosen, lambda layer: Edit(shift=self._shift(layer, vector, units)))
        return Steering(edits, float(self.setting("alpha", alpha)), self.setting("positions", positions))

    def null_space_steering(
        self,
        *,
        alpha: float | None = None,
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
    ) -> Steering:
        """AlphaSteer's: a matrix that leaves harmless activations alone and turns harmful ones to the shift."""
        chosen = self._blocks(layers)
        read = self.artifact.tensors["alphasteer.read"]
        edits = self._shared(
            "null space",
            chosen,
            lambda layer: Edit(down=read[layer][:, None], up=self._shift(layer, "anchor", "natural")[None]),
        )
        return Steering(edits, float(self.setting("alpha", alpha)), self.setting("positions", positions))

    def ablation(self) -> Steering:
        """An attack: the target's own direction is removed in every block, `h - r r^T h` (arXiv 2406.11717, eq. 4)."""
        layers = self.artifact.settings["gate_layers"]
        layer = int(layers[(len(layers) - 1) // 2])
        direction = self.artifact.tensors["own.unit"][layer]
        edit = Edit(down=direction[:, None], up=-direction[None])
        return Steering(dict.fromkeys(range(self.layers), edit), 1.0, "all")

    def _shift(self, layer: int, vector: Vector, units: Units) -> Tensor:
        tensors = self.artifact.tensors
        unit = tensors[{"anchor": "shift.unit", "own": "own.unit", "random": "random.unit"}[vector]][layer]
        return unit * tensors["shift.length"][layer] if units == "natural" else unit

    def _shared(self, kind: str, layers: tuple[int, ...], edit: Callable[[int], Edit]) -> Mapping[int, Edit]:
        """One object for equal edits, so rows of one batch are steered together. Those used last are kept.

        Engines tell edits apart by identity, and hold those by which they know something.
        """
        found = self._edits.pop((kind, layers), None) or {layer: edit(layer) for layer in layers}
        self._edits[kind, layers] = found
        while len(self._edits) > _KEPT:
            del self._edits[next(iter(self._edits))]
        return found

    def _blocks(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        """The steered blocks, each once and in their order: edits are equal whatever order a request gives."""
        return tuple(sorted(set(self.check_layers(self.setting("layers", layers)))))
