"""AnchorLM makes fine-tuned language models safe at inference time, without touching a weight."""

from anchorlm._lazy import lazily

TYPE_CHECKING = False  # `typing` itself takes a while: what the command line loads first is to be little
if TYPE_CHECKING:
    from anchorlm.defenses import Defense
    from anchorlm.guard import Guard, Recipe
    from anchorlm.models import CausalModel
    from anchorlm.records import AnchorLMError, DefenseError, GenerationSettings, Request, Response, UserError
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "defenses": "Defense",
            "guard": "Guard Recipe",
            "models": "CausalModel",
            "records": "AnchorLMError DefenseError GenerationSettings Request Response UserError",
        },
    )

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
