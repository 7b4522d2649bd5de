from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anchorlm.cli._errors import complain
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.guard import Guard, Recipe


def load_guard(recipe: Recipe, *, probe: bool | None = None) -> Guard:
    """The guard of a recipe, with a sign of life while its models are loaded and tried.

    Args:
        recipe: Describes it.
        probe: Whether it is tried before it is used. None: as the recipe says.

    Raises:
        UserError: It fails its probe, or what `Guard.from_recipe` raises.
    """
    from anchorlm.guard import Guard

    quiet_libraries()
    with busy("Loading the models"):
        guard = Guard.from_recipe(recipe)
    if recipe.probe.run if probe is None else probe:
        with busy("Trying the guard"):
            found = guard.probe(raw=False)
        *others, last = [f"The guard {one.said}" for one in found.failures] or [""]
        for sentence in others:
            complain(sentence)
        if last:
            raise UserError(f"{last.rstrip('.')}; or go on all the same with --no-probe.")
    return guard


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from anchorlm.cli._bars import stderr

    with stderr.status(f"{what} ..."):
        yield


def quiet_libraries() -> None:
    """Only AnchorLM speaks, a sentence a line: the libraries' bars and warnings are for developers."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Importing them to tell them so takes seconds: where no one has, they read it when they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    log = logging.getLogger("anchorlm")
    if not log.handlers:
        log.addHandler(_Aloud())
        log.propagate = False


class _Aloud(logging.Handler):
    """Says a warning as the command line says everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        complain(record.getMessage())
