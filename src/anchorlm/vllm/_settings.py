from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from anchorlm.defenses.alignbeam import MixtureSettings
from anchorlm.files import read_toml
from anchorlm.models import ModelSettings
from anchorlm.records import Folder, Place, Settings, UserError
from anchorlm.team import EngineSettings
from anchorlm.vllm._states import SteeringFile

FILE, ANCHOR = "ANCHORLM_VLLM", "ANCHORLM_VLLM_ANCHOR"
FLOOR = {"alpha": "ANCHORLM_VLLM_FLOOR_ALPHA", "mixed_tokens": "ANCHORLM_VLLM_FLOOR_TOKENS"}
"""Environment variables: the operator's file, or the anchor alone, and the floor."""
_VARIABLES = (ANCHOR, *FLOOR.values())
"""Those that begin like the file's. Another one is a mistake, and what it was to set would silently not hold."""

KEY = "anchorlm"
"""Under which a request asks, in `vllm_xargs` or `SamplingParams.extra_args`."""

STEERING, CAPTURE = f"{KEY}_steering", f"{KEY}_capture"
"""The same for the name of a steering, and for whether activations are wanted."""


_CHOOSE: dict[str, Any] = {
    "logit_bias": {}, "allowed_token_ids": [], "bad_words": [], "structured_outputs": None, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "repetition_penalty": 1.0, "logprob_token_ids": [],
    "prompt_logprob_token_ids": [], "trace_decode_token_ids": [],
}  # fmt: skip
"""Fields of a request that move what is said, or choose by what the target alone says, with the values that ask for
nothing."""
_AS_CLIENTS_SAY = {"structured_outputs": "a format (response_format, structured_outputs or a forced tool)"}


class Asked(Settings):
    """What one request asks for. `None` is what the operator's file says."""

    alpha: float | None = Field(default=None, ge=0, le=1, description="Weight of the anchor.")
    mixed_tokens: int | None = Field(default=None, ge=1, le=512, description="How many tokens are mixed.")

    @classmethod
    def read(cls, extra: Mapping[str, Any] | None) -> Self | None:
        """What the extra arguments of a request ask for; None where they do not ask.

        Raises:
            UserError: A value out of range, an unknown name, or no JSON object.
        """
        extra = extra or {}
        strange = sorted(name for name in extra if str(name).startswith(KEY) and name not in (KEY, STEERING, CAPTURE))
        if strange:
            raise UserError(f"There is no extra argument {strange[0]!r}: put everything into {KEY!r}, as JSON.")
        if KEY not in extra:
            return None
        value = extra[KEY]
        if isinstance(value, str):  # vLLM takes no objects in vllm_xargs
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, Mapping):
            raise UserError(f"The extra argument {KEY!r} is a JSON object as text, such as '{{\"alpha\": 0.5}}'.")
        return cls.parse(value, where=f"the extra argument {KEY}")


class Floor(Settings):
    """The least that every request gets, whatever it asks for."""

    alpha: float = Field(default=0.0, ge=0, le=1, description="Least weight of the anchor. 0: there is no floor.")
    mixed_tokens: int = Field(default=6, ge=1, le=512, description="Least number of mixed tokens.")


class PluginSettings(Settings):
    """What the operator of a vLLM server says.

    Sections: `anchor`, `steering`, `mixing`, `floor`, `engine`; and `chat_template`.
    """

    anchor: Annotated[
        ModelSettings | None,
        Place(),
        BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value),
    ] = Field(default=None, description="A small aligned model, of any family.")
    steering: dict[str, Folder] = Field(
        default_factory=dict, description="Files that `save_steering` has written, by the name that requests give."
    )
    mixing: MixtureSettings = Field(
        default=MixtureSettings(gate="always"), description="How requests are mixed that ask for it."
    )
    chat_template: Annotated[str, Place()] | None = Field(
        default=None, description="The target's chat template, if you start the server with `--chat-template`."
    )
    floor: Floor = Field(default=Floor(), description="The least that every request gets.")
    engine: EngineSettings | None = Field(
        default=None, description="Limits of the anchor's engine. By default they follow from the server's."
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """What the environment says; None where it names no anchor, and the plug-in is idle.

        Raises:
            UserError: A file or a value that cannot be used.
        """
        known = os.environ if environment is None else environment
        if strange := sorted(name for name in known if name.startswith(f"{FILE}_") and name not in _VARIABLES):
            raise UserError(f"There is no variable {strange[0]}: unset it, or write one of {', '.join(_VARIABLES)}.")
        file = known.get(FILE)
        data = read_toml(file, "The settings of AnchorLM for vLLM in") if file else {}
        if known.get(ANCHOR):
            data["anchor"] = known[ANCHOR]
        floor = {name: known[variable] for name, variable in FLOOR.items() if known.get(variable)}
        if floor:
            data["floor"] = {**data.get("floor", {}), **floor}
        if not data:
            return None
        if "anchor" not in data and ("floor" in data or "steering" not in data):
            raise UserError(f"AnchorLM has no anchor in this vLLM server: set {ANCHOR}, or name one in {FILE}.")
        if file:
            data = cls.placed(data, Path(file).parent)
        if isinstance(mixing := data.get("mixing"), dict):
            data["mixing"] = {"gate": "always", **mixing}
        settings = cls.parse(data, where=f"the settings of AnchorLM for vLLM ({file or 'environment'})")
        if settings.floor.alpha == 0 and "floor" in data:
            raise UserError(f"A floor needs a weight of the anchor: give alpha above 0 in it, or set {FLOOR['alpha']}.")
        if settings.mixing.gate != "always":
            raise UserError("A vLLM server reads no gate: leave gate out of the section mixing.")
        return settings

    @classmethod
    def current(cls) -> PluginSettings:
        """What the environment says, read once; of an idle plug-in, what there is without it."""
        return _current(tuple(os.environ.get(name) for name in (FILE, ANCHOR, *FLOOR.values())))

    def check_choice(self, params: Any) -> None:
        """Whether a request lets the mixture choose. A server applies these fields around it, so they go past a floor.

        Args:
            params: The request's sampling parameters.

        Raises:
            UserError: It does not.
        """
        for name, neutral in _CHOOSE.items():
            if getattr(params, name, None) not in (None, neutral):
                said = _AS_CLIENTS_SAY.get(name, name)
                raise UserError(f"This server guides every answer, and {said} chooses past the guide: leave it out.")

    def check_defaults(self, defaults: Mapping[str, Any]) -> None:
        """The same of what a server puts into each request that leaves it out: every one would be an error.

        Args:
            defaults: Sampling parameters by name.

        Raises:
            UserError: It would go past the floor.
        """
        for name in defaults.keys() & _CHOOSE.keys() if self.floor.alpha > 0 else ():
            if defaults[name] != (neutral := _CHOOSE[name]):
                raise UserError(
                    f"The target's generation_config sets {name}, which chooses past the floor of AnchorLM: start vLLM "
                    f"with --override-generation-config '{{\"{name}\": {neutral}}}'."
                )

    @property
    def loaded(self) -> dict[str, SteeringFile]:
        """The steerings by their names.

        Raises:
            UserError: A file that is not there, or that holds something else.
        """
        return {name: SteeringFile.load(file) for name, file in self.steering.items()}

    def check(self, extra: Mapping[str, Any] | None) -> Asked | None:
        """What a request asks for of what there is here.

        Raises:
            UserError: It asks for something else.
        """
        asked = Asked.read(extra)
        if asked is not None and self.anchor is None:
            raise UserError(f"This server has no anchor: leave {KEY!r} out, or ask its operator for one.")
        name = (extra or {}).get(STEERING)
        if name is not None and not (isinstance(name, str) and name in self.steering):
            known = ", ".join(sorted(self.steering)) or "none"
            raise UserError(f"There is no steering {name!r:.80} in this server; it has: {known}.")
        if (extra or {}).get(CAPTURE) and not self.steering:
            raise UserError(f"This server reads no activations: leave {CAPTURE!r} out.")
        return asked

    def share(self, asked: Asked | None) -> tuple[float, int]:
        """Alpha and number of mixed tokens of a request: never below the floor; alpha 0 leaves it alone."""
        alpha, tokens = 0.0, self.mixing.mixed_tokens
        if asked is not None:
            alpha = self.mixing.alpha if asked.alpha is None else asked.alpha
            tokens = self.mixing.mixed_tokens if asked.mixed_tokens is None else asked.mixed_tokens
        if self.floor.alpha == 0:
            return alpha, tokens
        return max(alpha, self.floor.alpha), max(tokens, self.floor.mixed_tokens)


@lru_cache(maxsize=1)
def _current(environment: tuple[str | None, ...]) -> PluginSettings:
    return PluginSettings.from_environment() or PluginSettings()
