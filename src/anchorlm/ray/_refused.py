from __future__ import annotations

from click import ClickException
from ray.serve.exceptions import RayServeException

from anchorlm.records import UserError


class RefusedError(UserError, ClickException, RayServeException):  # type: ignore[misc]
    """A mistake of the user's, which both doors to Ray Serve tell in one sentence.

    `serve run` with an import path does so with what click raises, and a cluster that reads a file with an error of Ray
    Serve's own. The traceback of any other error is printed whole.
    """

    exit_code = 2
