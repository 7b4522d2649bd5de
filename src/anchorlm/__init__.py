"""AnchorLM makes fine-tuned language models safe at inference time, without touching a weight."""

from importlib import import_module

TYPE_CHECKING = False  # `typing` itself takes a while: what the command line loads first is to be little
if TYPE_CHECKING:
    from anchorlm.defenses import Defense
    from anchorlm.guard import Guard, Recipe
    from anchorlm.models import CausalModel
    from anchorlm.records import AnchorLMError, DefenseError, GenerationSettings, Request, Response, UserError

__all__ = [
    "AnchorLMError",
    "CausalModel",
    "Defense",
    "DefenseError",
    "GenerationSettings",
    "Guard",
    "Recipe",
    "Request",
    "Response",
    "UserError",
]

_ROOMS = {"CausalModel": "models", "Defense": "defenses", "Guard": "guard", "Recipe": "guard"}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import: `anchorlm --help` and a record's import do not wait for them.
    if name in __all__:
        return getattr(import_module(f"anchorlm.{_ROOMS.get(name, 'records')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
