"""The door for a person at a terminal."""

from anchorlm.cli._exit import run_and_exit

__all__ = ["main"]


def main() -> None:
    """Runs the command line, and ends the process."""
    run_and_exit(_command)


def _command() -> None:
    # With what it needs it takes a second to import, in which Ctrl-C is ours already.
    from anchorlm.cli._app import app

    app()
