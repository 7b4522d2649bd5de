"""Plain frozen data: requests, events, responses, errors. Imports nothing else of AnchorLM."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.records._access import Access
    from anchorlm.records._artifacts import Artifact, ModelStamp, data_digest, instruments, prompts_digest
    from anchorlm.records._cache import cache_folder
    from anchorlm.records._errors import (
        AnchorLMError,
        DefenseError,
        ModelError,
        TooLongError,
        UnreadableError,
        UserError,
    )
    from anchorlm.records._journal import Journal, append_line, hold, lock, read_journal
    from anchorlm.records._rates import clustered, effective_size, wilson
    from anchorlm.records._requests import (
        Folder,
        GenerationSettings,
        Message,
        Messages,
        Request,
        Settings,
        as_messages,
        first_stop,
        keys_beside,
        prompt_key,
        turn_text,
    )
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
    from anchorlm.records._rows import BadRow, Row, read_rows
    from anchorlm.records._sketches import Sketches, likeness, plain, sketch, sketches
    from anchorlm.records._tables import table_rows
    from anchorlm.records._thoughts import (
        Policy,
        ThoughtDelta,
        Thoughts,
        ThoughtSettings,
        checked_options,
        checked_thoughts,
    )
    from anchorlm.records._toml import read_toml
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_access": "Access",
            "_artifacts": "Artifact ModelStamp data_digest instruments prompts_digest",
            "_cache": "cache_folder",
            "_errors": "AnchorLMError DefenseError ModelError TooLongError UnreadableError UserError",
            "_journal": "Journal append_line hold lock read_journal",
            "_rates": "clustered effective_size wilson",
            "_requests": "Folder GenerationSettings Message Messages Request Settings as_messages first_stop "
            "keys_beside prompt_key turn_text",
            "_responses": "Decision Event Finished FinishReason Response TextDelta TokenScore Usage",
            "_rows": "BadRow Row read_rows",
            "_sketches": "Sketches likeness plain sketch sketches",
            "_tables": "table_rows",
            "_thoughts": "Policy ThoughtDelta ThoughtSettings Thoughts checked_options checked_thoughts",
            "_toml": "read_toml",
        },
    )

__all__ = [
    "Access",
    "AnchorLMError",
    "Artifact",
    "BadRow",
    "Decision",
    "DefenseError",
    "Event",
    "FinishReason",
    "Finished",
    "Folder",
    "GenerationSettings",
    "Journal",
    "Message",
    "Messages",
    "ModelError",
    "ModelStamp",
    "Policy",
    "Request",
    "Response",
    "Row",
    "Settings",
    "Sketches",
    "TextDelta",
    "ThoughtDelta",
    "ThoughtSettings",
    "Thoughts",
    "TokenScore",
    "TooLongError",
    "UnreadableError",
    "Usage",
    "UserError",
    "append_line",
    "as_messages",
    "cache_folder",
    "checked_options",
    "checked_thoughts",
    "clustered",
    "data_digest",
    "effective_size",
    "first_stop",
    "hold",
    "instruments",
    "keys_beside",
    "likeness",
    "lock",
    "plain",
    "prompt_key",
    "prompts_digest",
    "read_journal",
    "read_rows",
    "read_toml",
    "sketch",
    "sketches",
    "table_rows",
    "turn_text",
    "wilson",
]
