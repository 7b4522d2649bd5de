from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from anchorlm.cli._exit import INTERRUPTED
from anchorlm.records import AnchorLMError, UserError


class OneSentence(TyperGroup):
    """Commands whose errors are one sentence on stderr: 2 for a user's mistake, 1 for anything else.

    `--debug` may stand anywhere on the command line and lets the traceback through.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Moves `--debug` to where it is declared."""
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        with _told():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            with _told():
                return super().invoke(ctx)
        except BrokenPipeError:
            # Anyone who read our output has seen enough; the interpreter must not try to flush the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            complain("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except AnchorLMError as error:
            if ctx.params.get("debug"):
                raise
            complain(str(error))
            raise typer.Exit(exit_code(error)) from None
        except (typer.Exit, typer.Abort, TyperException):
            raise
        except Exception as error:  # a library's own error: a sentence here, the traceback under --debug
            if ctx.params.get("debug"):
                raise
            complain(f"Unexpected {type(error).__name__}: {str(error).strip()[:200]} (run again with --debug).")
            raise typer.Exit(1) from None


@contextmanager
def _told() -> Iterator[None]:
    """Says in one sentence what typer would draw a box around: an unknown option, a value that does not fit."""
    try:
        yield
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it has shown the help
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "anchorlm"
        complain(f"{' '.join(error.format_message().split()).rstrip('.')} (see {command} --help).")
        raise typer.Exit(error.exit_code) from None


def exit_code(error: AnchorLMError) -> int:
    """2 for a mistake that the user can fix, 1 where the defense failed."""
    return 2 if isinstance(error, UserError) else 1


def complain(sentence: str) -> None:
    """Says something on stderr."""
    typer.echo(f"anchorlm: {sentence}", err=True)
