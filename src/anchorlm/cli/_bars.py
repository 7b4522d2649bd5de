"""What is shown while you wait. Imported when there is something to show."""

from __future__ import annotations

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where everything goes that is not the answer."""


class Rate(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")
