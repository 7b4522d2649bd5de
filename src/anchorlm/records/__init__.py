"""Plain frozen data: requests, events, responses, errors, artifacts. Imports nothing else of AnchorLM."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.records._access import Access
    from anchorlm.records._artifacts import Artifact, ModelStamp, data_digest, instruments, prompts_digest
    from anchorlm.records._errors import (
        AnchorLMError,
        DefenseError,
        ModelError,
        NoToolsError,
        TooLongError,
        UnreadableError,
        UserError,
    )
    from anchorlm.records._formats import FormatSupport, checked_format, forced_words, is_json, schema_of
    from anchorlm.records._rates import clustered, effective_size, wilson
    from anchorlm.records._requests import Message, Messages, Request, as_messages, first_stop, prompt_key, turn_text
    from anchorlm.records._responses import (
        Decision,
        Event,
        Finished,
        FinishReason,
        Response,
        TextDelta,
        TokenScore,
        Usage,
    )
    from anchorlm.records._settings import (
        MOST_STOP_IDS,
        PAST_THE_END,
        Folder,
        GenerationSettings,
        Place,
        Settings,
        keys_beside,
    )
    from anchorlm.records._sketches import Sketches, asked, likeness, plain, shingles, sketch, sketches
    from anchorlm.records._thoughts import (
        Policy,
        ThoughtDelta,
        Thoughts,
        ThoughtSettings,
        checked_options,
        checked_thoughts,
    )
    from anchorlm.records._tools import (
        MOST_TOOLS,
        ToolCall,
        ToolUse,
        call_text,
        calls_of,
        checked_calls,
        checked_tools,
        json_text,
        readable,
        told,
        uses_tools,
    )
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_access": "Access",
            "_artifacts": "Artifact ModelStamp data_digest instruments prompts_digest",
            "_errors": "AnchorLMError DefenseError ModelError NoToolsError TooLongError UnreadableError UserError",
            "_formats": "FormatSupport checked_format forced_words is_json schema_of",
            "_rates": "clustered effective_size wilson",
            "_requests": "Message Messages Request as_messages first_stop prompt_key turn_text",
            "_responses": "Decision Event FinishReason Finished Response TextDelta TokenScore Usage",
            "_settings": "Folder GenerationSettings MOST_STOP_IDS PAST_THE_END Place Settings keys_beside",
            "_sketches": "Sketches asked likeness plain shingles sketch sketches",
            "_thoughts": "Policy ThoughtDelta ThoughtSettings Thoughts checked_options checked_thoughts",
            "_tools": "MOST_TOOLS ToolCall ToolUse call_text calls_of checked_calls checked_tools json_text readable "
            "told uses_tools",
        },
        moved={
            "anchorlm.files": "BadRow Journal Row=PromptRow append_line cache_folder hold lock read_journal read_rows "
            "read_toml table_rows",
        },
    )

__all__ = [
    "MOST_STOP_IDS",
    "MOST_TOOLS",
    "PAST_THE_END",
    "Access",
    "AnchorLMError",
    "Artifact",
    "Decision",
    "DefenseError",
    "Event",
    "FinishReason",
    "Finished",
    "Folder",
    "FormatSupport",
    "GenerationSettings",
    "Message",
    "Messages",
    "ModelError",
    "ModelStamp",
    "NoToolsError",
    "Place",
    "Policy",
    "Request",
    "Response",
    "Settings",
    "Sketches",
    "TextDelta",
    "ThoughtDelta",
    "ThoughtSettings",
    "Thoughts",
    "TokenScore",
    "TooLongError",
    "ToolCall",
    "ToolUse",
    "UnreadableError",
    "Usage",
    "UserError",
    "as_messages",
    "asked",
    "call_text",
    "calls_of",
    "checked_calls",
    "checked_format",
    "checked_options",
    "checked_thoughts",
    "checked_tools",
    "clustered",
    "data_digest",
    "effective_size",
    "first_stop",
    "forced_words",
    "instruments",
    "is_json",
    "json_text",
    "keys_beside",
    "likeness",
    "plain",
    "prompt_key",
    "prompts_digest",
    "readable",
    "schema_of",
    "shingles",
    "sketch",
    "sketches",
    "told",
    "turn_text",
    "uses_tools",
    "wilson",
]
