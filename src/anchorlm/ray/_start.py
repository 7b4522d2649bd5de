from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from anchorlm.records import UserError

_STARTS, _BUSY = 3, "timed out during startup"
"""How often Ray is started, and what it says if the machine was too busy for the 30 seconds that it waits."""

_PATIENCE = 10.0
"""Seconds in which the address of a cluster must answer."""


@dataclass(frozen=True, slots=True)
class Crew:
    """How many processes answer, and what each of them gets.

    Attributes:
        size: How many there are.
        cpus: Processors of each, and so the threads that it computes with.
        gpus: GPUs of each: one or none.
    """

    size: int
    cpus: int
    gpus: int


def require() -> None:
    """Whether Ray is there.

    Raises:
        UserError: It is not installed.
    """
    if find_spec("ray") is None:
        raise UserError("Ray is not installed, and this needs it: pip install 'anchorlm[ray]'.")


def tell_no_one() -> None:
    """Nothing is told to anyone about what runs on a Ray that starts here, unless you have chosen so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def started(workers: int | None) -> Iterator[Crew]:
    """A connection to the Ray cluster of this machine or of RAY_ADDRESS, or else a Ray of its own while it lasts.

    Args:
        workers: How many processes are wanted. None: one for each GPU, or one for each machine where there is none.

    Raises:
        UserError: The cluster cannot be reached, or is too small.
    """
    import ray

    tell_no_one()
    ours = not ray.is_initialized()
    if ours:
        _connect()
    try:
        yield _crew(workers)
    finally:
        if ours:
            ray.shutdown()


def _connect() -> None:
    import ray

    if not _listens(address := os.environ.get("RAY_ADDRESS", "")):
        raise _unreachable(f"nothing answers at {address}")
    for left in reversed(range(_STARTS)):
        try:
            # What workers print would come in between answers on stdout. What they have to say, they send.
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:  # Ray raises bare ones, too
            why = str(error).strip()
            if left and _BUSY in why:
                ray.shutdown()
                continue
            raise _unreachable(why.split("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__) from None
        return


def _listens(address: str) -> bool:
    """Whether something answers at an address, where it names a host and a port.

    Ray would look for a cluster twenty times there, 40 seconds each.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return True  # a word of Ray's own, such as auto, or what Ray refuses at once
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # if it is something else: one look is enough
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, UnicodeError):
        return False
    return True


def _unreachable(why: str) -> UserError:
    return UserError(
        f"Ray cannot be started or reached ({why}): start a cluster with `ray start --head`, or unset RAY_ADDRESS to "
        "run one on this machine alone."
    )


def _crew(workers: int | None) -> Crew:
    """The crew, of what is free: Ray would wait for the rest, without a word."""
    import ray
    from ray._private.state import available_resources_per_node

    alive = [one for one in ray.nodes() if one["Alive"]]
    whole = [{kind: one["Resources"][kind] for kind in ("CPU", "GPU") if kind in one["Resources"]} for one in alive]
    fitting(whole, workers)
    free = available_resources_per_node()
    left = [
        {kind: free.get(one["NodeID"], {}).get(kind, 0.0) for kind in has}
        for one, has in zip(alive, whole, strict=True)
    ]
    return fitting(left, workers, busy=left != whole)


def fitting(machines: list[dict[str, Any]], workers: int | None, *, busy: bool = False) -> Crew:
    """How a crew is spread over some machines.

    Args:
        machines: What each of them has, as Ray says it.
        workers: How many processes are wanted. None: one for each GPU, or one for each machine where there is none.
        busy: Whether they have more, which is in use.

    Raises:
        UserError: There is not enough for so many.
    """
    free, more = ("free ", "end what else runs there") if busy else ("", "start Ray with more")
    with_gpus = any("GPU" in one for one in machines)
    gpus = sum(int(one.get("GPU", 0)) for one in machines)
    machines = [one for one in machines if one.get("CPU", 0) >= 1]
    size = workers or gpus or len(machines)
    if with_gpus and size > gpus:
        raise UserError(
            f"The Ray cluster has {_some(gpus, f'{free}GPU')}, and each worker takes one: give fewer --workers, or "
            f"{more}."
        )
    cores = [int(one["CPU"]) for one in machines if not with_gpus or one.get("GPU", 0) >= 1]
    if not size or size > sum(cores):
        raise UserError(
            f"The Ray cluster has {_some(sum(cores), f'{free}processor')} for workers, and each takes one at least: "
            f"give fewer --workers, or {more}."
        )
    # Everyone gets the same share, and no one is promised a processor that lies on another machine.
    share = max(share for share in range(1, max(cores) + 1) if sum(core // share for core in cores) >= size)
    return Crew(size, share, int(with_gpus))


def _some(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
