"""What a backend's HTTP client is made with, and where it leads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import threading

import httpx
import pytest

from docmind.backends.careful_http import client_settings, converted
from docmind.backends.places import allow
from docmind.errors import BackendError
from docmind.settings import save_settings


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:8765", "//localhost", "ftp://localhost", "http://", "http:///models", "http://:8765",
     "http://localhost:0", "http://localhost:65536", "http://127.0.0.1:99999", "http://localhost:port", "http://[::1",
     "http://\x00", "http://xn--"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_address_is_refused_before_a_client_is_made(url, config):
    """The client would find out when it connects, by an error that is not its own."""
    with pytest.raises(BackendError) as caught:
        client_settings(config, url, 1.0)
    assert caught.value.reason == "invalid_option"
    assert "http://" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://localhost", "http://127.0.0.1:65535/models", "http://[::1]:1", "HTTP://127.0.0.1:80"]
)
def test_an_address_with_scheme_and_host_is_taken(url, config):
    """No redirects, nothing from the environment, no deadline on bytes."""
    settings = client_settings(config, url, 1.0)
    assert (settings["follow_redirects"], settings["trust_env"]) == (False, False)
    assert (settings["timeout"].connect, settings["timeout"].read) == (1.0, None)


@pytest.mark.parametrize("url", ["https://localhost", "HTTPS://127.0.0.1:8443"])
def test_a_certificate_is_checked_however_the_scheme_is_written(url, config):
    """Capital letters are the same scheme to the client."""
    tls = client_settings(config, url, 1.0)["transport"]._pool._ssl_context
    assert tls.verify_mode == ssl.CERT_REQUIRED
    assert tls.check_hostname


# Where connections lead


@pytest.fixture
def listening():
    """A server on this machine that notes who connects: its port and the connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = []

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    heard.append(connection)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for connection in heard:
            connection.close()


@pytest.fixture
def resolves(monkeypatch):
    """Makes names resolve as told: names of the outside cannot be looked up here."""

    def resolve(**names):
        def answer(host, port, *arguments, **named):
            given = names.get(str(host).replace(".", "_"), host)
            if not isinstance(given, (list, str)):
                raise given
            given = [given] if isinstance(given, str) else given
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in given]

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return resolve


async def _get(config, url, **settings):
    async with httpx.AsyncClient(base_url=url, **client_settings(config, url, 0.5, **settings)) as client:
        with converted(client):
            return await client.get("/")


def get(config, url, **settings):
    """Ask, and why it failed."""
    with pytest.raises(BackendError) as caught:
        asyncio.run(asyncio.wait_for(_get(config, url, **settings), 20))
    assert caught.value.hint
    return caught.value.reason


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.0.1", "224.0.0.1", "0.0.0.0", "::", "fe80::1", "ff02::1", "::ffff:169.254.169.254"],
)
def test_an_address_that_no_model_is_behind_is_refused(address, config, resolves):
    """Those of a cloud's own services give away the machine's keys."""
    url = f"http://[{address}]:9" if ":" in address else f"http://{address}:9"
    allow(config, url)
    allow(config, "http://box:9")
    resolves(box=address)
    assert get(config, url) == "address_refused"
    assert get(config, "http://box:9") == "address_refused"


def test_a_name_that_leads_farther_than_it_says_is_refused(config, resolves, listening):
    """A name without a dot is of the own network; one that leads to the internet is somebody's trick or mistake."""
    port, heard = listening
    resolves(box="8.8.8.8", localhost="192.168.1.20", near=["127.0.0.1", "8.8.8.8"], gone=OSError("no such name"))
    for name in ("box", "near", "gone"):
        allow(config, f"http://{name}:{port}")
    assert get(config, f"http://box:{port}") == "address_refused"
    assert get(config, f"http://localhost:{port}") == "address_refused"
    assert get(config, f"http://gone:{port}") == "unreachable"
    assert heard == []


def test_a_name_that_leads_nearer_is_followed_and_each_of_its_addresses_is_tried(config, resolves, listening):
    """As "localhost" has two, of which a server often listens on one."""
    port, heard = listening
    resolves(box=["::1", "127.0.0.1"])
    allow(config, f"http://box:{port}")

    async def ask():
        task = asyncio.create_task(_get(config, f"http://box:{port}"))
        while not heard:
            await asyncio.sleep(0.01)
            if task.done():
                task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert len(heard) == 1


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"])
def test_a_proxy_named_in_the_environment_gets_nothing(variable, config, monkeypatch, listening):
    """Not even for a server on this machine."""
    port, heard = listening
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert get(config, "http://127.0.0.1:9") == "unreachable"
    assert heard == []


# What the person allows


def test_text_goes_beyond_this_device_only_where_it_was_allowed(config, resolves, listening):
    """A listing carries none; the same host at another port is another address."""
    port, heard = listening
    resolves(server="127.0.0.1")
    allow(config, f"http://server:{port}", is_allowed=False)
    assert get(config, f"http://server:{port}") == "consent_missing"
    assert heard == []
    assert get(config, "http://server:9", carries_text=False) == "unreachable"
    settings = allow(config, f"http://server:{port}")
    assert f"http://server:{port}" in settings.allowed
    assert client_settings(config, f"http://server:{port}", 1.0)
    assert get(config, f"http://server:{port + 1}") == "consent_missing"
    assert get(config, f"https://server:{port}") == "consent_missing"
    allow(config, f"http://server:{port}", is_allowed=False)
    assert get(config, f"http://server:{port}") == "consent_missing"


def test_local_only_asks_nobody_beyond_this_device(config, resolves, listening):
    """Whatever was allowed before; what is on this device works on."""
    port, heard = listening
    resolves(server="127.0.0.1")
    settings = allow(config, f"http://server:{port}")
    save_settings(config, dataclasses.replace(settings, local_only=True))
    for url in (f"http://server:{port}", f"http://192.168.7.7:{port}", f"https://api.example.com:{port}"):
        assert get(config, url) == get(config, url, carries_text=False) == "local_only"
    assert heard == []
    assert get(config, "http://127.0.0.1:9") == "unreachable"
    save_settings(config, settings)


def test_settings_that_cannot_be_read_allow_nothing(config):
    """A switch that was thrown must not open by itself."""
    config.settings.write_text("local_only = maybe", encoding="utf-8")
    assert get(config, "http://server:9") == "settings_invalid"
    assert get(config, "http://127.0.0.1:9") == "unreachable"
    config.settings.unlink()
