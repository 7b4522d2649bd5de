"""Plain frozen data: requests, events, responses, errors. Imports nothing else of AnchorLM."""

from anchorlm.records._access import Access
from anchorlm.records._artifacts import Artifact, ModelStamp, data_digest
from anchorlm.records._errors import AnchorLMError, DefenseError, UserError
from anchorlm.records._rates import wilson
from anchorlm.records._requests import GenerationSettings, Message, Messages, Request, Settings, as_messages
from anchorlm.records._responses import Decision, Event, Finished, FinishReason, Response, TextDelta, Usage

__all__ = [
    "Access",
    "AnchorLMError",
    "Artifact",
    "Decision",
    "DefenseError",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationSettings",
    "Message",
    "Messages",
    "ModelStamp",
    "Request",
    "Response",
    "Settings",
    "TextDelta",
    "Usage",
    "UserError",
    "as_messages",
    "data_digest",
    "wilson",
]
