"""Why there is no connection is said in words, over real sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.endpoint import Endpoint, Trouble
from kvfidelity.judges.requests import Limits, Request


def message(url: str) -> str:
    endpoint = Endpoint("mine", {"model": "m", "base_url": url, "api_key_env": None}, Limits())
    with pytest.raises(Exception) as caught:
        endpoint.exchanges.call(lambda client: client.batches.with_raw_response.retrieve("b"))
    found = endpoint.ask(Request({"model": "m", "messages": [], "max_tokens": 9}), None)
    assert isinstance(found, Trouble) and found.passing and not found.lost
    # Batches and single requests say the same.
    assert str(endpoint.fatal_error(caught.value)) == str(found.fatal)
    return str(found.fatal)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_nothing_listens() -> None:
    assert "nothing listens at the endpoint" in message(f"http://127.0.0.1:{closed_port()}/v1")


def test_an_unknown_host_name() -> None:
    assert "DNS" in message("http://no-such-host.invalid/v1")


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    assert "the proxy of HTTP_PROXY" in message("http://example.invalid/v1")


def test_a_certificate_file_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="SSL_CERT_FILE"):
        message("https://127.0.0.1/v1")


PASSWORD = "qz/jj:w@kk-0123456789"


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://user:{PASSWORD}@127.0.0.1:1",
        f"http://{PASSWORD}@127.0.0.1:1",
        f"ftp://user:{PASSWORD}@127.0.0.1:1",
        f"http://127.0.0.1:{PASSWORD}",
        f"http://user:{PASSWORD.replace('/', '')}@127.0.0.1:1",
        f"user:{PASSWORD}",
    ],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_part_of_a_proxys_password_is_printed(
    monkeypatch: pytest.MonkeyPatch, proxy: str, variable: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    try:
        told = message("http://example.invalid/v1")
    except UserError as error:
        told = str(error)
        assert variable in told and "%2F" in told
    assert not any(part in told for part in ("qz", "jj", "kk-", "0123")), told
