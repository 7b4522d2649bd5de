"""Serves the two recipes of this folder, runs every script against them, and prints a table of what works.

python examples/clients/run.py [PYTHON of the clients]

`make test-clients` gives it an environment with the clients and Node.js. Scripts in JavaScript need `npm ci` here.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
RECIPES = [str(HERE / name) for name in ("thinker.toml", "strict.toml")]
SCRIPTS = sorted(HERE.glob("with_*.*"), key=lambda script: (script.suffix == ".mjs", script.stem))
CAPABILITIES = ("chat", "stream", "tools", "schema", "reasoning", "refusal")
MINUTES = 10
"""How long the server may load, and a script may run."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def wait_for(server: "subprocess.Popen[bytes]", address: str) -> None:
    """Until the server answers.

    Raises:
        SystemExit: It ended, or takes too long.
    """
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end and server.poll() is None:
        try:
            with urlopen(f"{address}/ready"):
                return
        except (URLError, OSError):
            time.sleep(1)
    raise SystemExit("The server did not get ready: see its words above.")


def tried(script: Path, python: str, node: str, address: str) -> tuple[str, bool]:
    """Runs a script.

    Args:
        script: Which.
        python: Runs those in Python.
        node: Runs those in JavaScript.
        address: Of the server.

    Returns:
        Its row of the table, and whether all of it works.
    """
    command = [node if script.suffix == ".mjs" else python, str(script)]
    found = subprocess.run(
        command, env={**os.environ, "ANCHORLM_URL": f"{address}/v1"}, stdout=subprocess.PIPE, text=True,
        timeout=60 * MINUTES, check=False,
    )  # fmt: skip
    print(found.stdout, flush=True)
    client, _, version = found.stdout.partition("\n")[0].rpartition(" ")
    came = dict(re.findall(r"(?m)^(\w+) +(ok|FAILED) ", found.stdout))
    cells = [client or script.name, version, *(came.get(name, "no answer") for name in CAPABILITIES)]
    works = found.returncode == 0 and all(came.get(name) == "ok" for name in CAPABILITIES)
    return f"| {' | '.join(cells)} | `{script.name}` |", works


def main() -> None:
    """Ends with status 1 if a capability of a client does not work."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    near = Path(python).with_name("node")
    node = str(near) if near.exists() else shutil.which("node") or "node"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # The recipes are tried by every script, so they need no self-test.
    command = [sys.executable, "-m", "anchorlm", "serve", *RECIPES, "--port", str(port), "--no-probe"]
    server = subprocess.Popen(command)
    try:
        wait_for(server, address)
        rows = [tried(script, python, node, address) for script in SCRIPTS]
    finally:
        server.terminate()
        server.wait()
    heads = ("client", "version", *CAPABILITIES, "script")
    print("\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(row for row, _ in rows)]))
    sys.exit(not all(works for _, works in rows))


if __name__ == "__main__":
    main()
