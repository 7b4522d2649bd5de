from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from anchorlm.records import UserError


def read_toml(path: str | Path, what: str, example: str = "") -> dict[str, Any]:
    """The data of a TOML file.

    Args:
        path: The file.
        what: What it should be, for the error ("The recipe").
        example: Where a good one is to be had, for the error.

    Raises:
        UserError: No such file, or no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {str(path)!r} cannot be read ({why}): give a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        start = f", or start from {example}" if example else ""
        raise UserError(f"{what} {str(path)!r} is not valid TOML ({error}): fix it{start}.") from None
