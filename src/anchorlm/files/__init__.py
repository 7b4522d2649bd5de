"""Reading and writing: rows of prompts, tables, journals, TOML, and folders of artifacts."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.files._cache import cache_folder
    from anchorlm.files._folder import check_folder, save_with_card
    from anchorlm.files._journal import Journal, append_line, hold, lock, read_journal
    from anchorlm.files._kept import Kept, short_key
    from anchorlm.files._rows import BadRow, PromptRow, read_rows
    from anchorlm.files._tables import table_rows
    from anchorlm.files._toml import read_toml
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_cache": "cache_folder",
            "_folder": "check_folder save_with_card",
            "_journal": "Journal append_line hold lock read_journal",
            "_kept": "Kept short_key",
            "_rows": "BadRow PromptRow read_rows",
            "_tables": "table_rows",
            "_toml": "read_toml",
        },
    )

__all__ = [
    "BadRow",
    "Journal",
    "Kept",
    "PromptRow",
    "append_line",
    "cache_folder",
    "check_folder",
    "hold",
    "lock",
    "read_journal",
    "read_rows",
    "read_toml",
    "save_with_card",
    "short_key",
    "table_rows",
]
