"""Why a server cannot be reached, each in one sentence with what helps."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import EndpointEngine
from anchorlm.engine._endpoint_http import Caller, client
from anchorlm.models import CausalModel, EndpointSettings
from anchorlm.records import DefenseError, UserError

NOWHERE = "http://nowhere.invalid/v1"
"""No name below this one is ever given to a host."""


@dataclass(frozen=True)
class Certificate:
    """A certificate, and a server's means to show it."""

    file: Path
    tls: ssl.SSLContext


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama"))


def certificate(folder: Path, host: str = "IP:127.0.0.1", days: int = 2) -> Certificate:
    """One that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl, which makes certificates, is not installed here")
    key, asked, file = folder / "key.pem", folder / "asked.pem", folder / "certificate.pem"

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)

    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", asked, "-subj", "/CN=a test",
            "-addext", f"subjectAltName={host}")  # fmt: skip
    openssl("x509", "-req", "-in", asked, "-signkey", key, "-days", days, "-copy_extensions", "copy", "-out", file)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file, key)
    return Certificate(file, tls)


def asked(url: str, **more: Any) -> Any:
    """What a server's list of models is, on an event loop of its own: its client reads the environment once."""

    async def ask() -> Any:
        try:
            return await Caller(EndpointSettings.parse({"endpoint": url, **more}, where="a test")).get("/models")
        finally:
            await client().aclose()

    return asyncio.run(ask())


def failure(url: str, **more: Any) -> str:
    with pytest.raises(DefenseError) as raised:
        asked(url, **more)
    return str(raised.value)


def test_a_certificate_that_nobody_has_vouched_for_is_told_at_once(model: CausalModel, tmp_path: Path) -> None:
    endpoint = Endpoint(model, tls=certificate(tmp_path).tls)
    settings = EndpointSettings.parse({"endpoint": endpoint.url, "retries": 4}, where="a test")
    with pytest.raises(UserError) as raised:
        EndpointEngine.start(settings)
    endpoint.stop()
    assert str(raised.value) == (
        f"The server at {endpoint.url} shows a certificate that is not trusted (self-signed certificate): let "
        "SSL_CERT_FILE name a file that holds the certificate of its authority."
    )
    assert endpoint.connects == 1


def test_what_helps_with_a_certificate_helps(
    model: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = certificate(tmp_path)
    endpoint = Endpoint(model, tls=own.tls)
    monkeypatch.setenv("SSL_CERT_FILE", str(own.file))
    found = asked(endpoint.url)
    endpoint.stop()
    assert [one["id"] for one in found["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"days": -1}, "(certificate has expired): renew it there, and check the clock of this machine."),
        ({"host": "IP:10.0.0.1"}, "): write the address with the host name that the certificate is for."),
        ({"host": "DNS:elsewhere.example"}, "): write the address with the host name that the certificate is for."),
    ],
    ids=str,
)
def test_a_certificate_of_another_time_or_host_is_told(
    wrong: dict[str, Any], said: str, model: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = certificate(tmp_path, **wrong)
    endpoint = Endpoint(model, tls=own.tls)
    monkeypatch.setenv("SSL_CERT_FILE", str(own.file))
    found = failure(endpoint.url)
    endpoint.stop()
    assert found.startswith(f"The server at {endpoint.url} shows a certificate that is not trusted (")
    assert found.endswith(said)
    assert endpoint.connects == 1


def test_a_server_without_encryption_is_told(model: CausalModel) -> None:
    endpoint = Endpoint(model)
    url = endpoint.url.replace("http:", "https:")
    found = failure(url)
    endpoint.stop()
    assert found.startswith(f"The server at {url} could not begin a secure connection (")
    assert found.endswith("): if it speaks plain HTTP, write its address with http://.")


def test_a_host_name_that_is_not_known_is_told() -> None:
    with pytest.raises(UserError) as raised:
        EndpointEngine.start(EndpointSettings.parse({"endpoint": NOWHERE, "retries": 0}, where="a test"))
    assert str(raised.value).startswith(f"The server at {NOWHERE} has a host name that this machine does not know (")
    assert str(raised.value).endswith("): check endpoint, and the DNS of this machine.")


def test_a_port_where_nothing_listens_is_told(model: CausalModel) -> None:
    endpoint = Endpoint(model)
    endpoint.stop()
    assert failure(endpoint.url, retries=0) == (
        f"The server at {endpoint.url} gave no answer (ConnectError): check that it runs there."
    )
