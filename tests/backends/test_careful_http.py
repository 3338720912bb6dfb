"""What a backend's HTTP client is made with."""

from __future__ import annotations

import ssl

import pytest

from docmind.backends.careful_http import client_settings
from docmind.errors import BackendError


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:8765", "//localhost", "ftp://localhost", "http://", "http:///models", "http://:8765",
     "http://localhost:0", "http://localhost:65536", "http://127.0.0.1:99999", "http://localhost:port", "http://[::1",
     "http://\x00", "http://xn--"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_address_is_refused_before_a_client_is_made(url):
    """The client would find out when it connects, by an error that is not its own."""
    with pytest.raises(BackendError) as caught:
        client_settings(url, 1.0)
    assert caught.value.reason == "invalid_option"
    assert "http://" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://localhost", "http://127.0.0.1:65535/models", "http://[::1]:1", "HTTP://box.example:80"]
)
def test_an_address_with_scheme_and_host_is_taken(url):
    """No redirects, nothing from the environment, no deadline on bytes."""
    settings = client_settings(url, 1.0)
    assert (settings["follow_redirects"], settings["trust_env"], settings["verify"]) == (False, False, False)
    assert (settings["timeout"].connect, settings["timeout"].read) == (1.0, None)


@pytest.mark.parametrize("url", ["https://box.example", "HTTPS://box.example:8443"])
def test_a_certificate_is_checked_however_the_scheme_is_written(url):
    """Capital letters are the same scheme to the client."""
    assert client_settings(url, 1.0)["verify"].verify_mode == ssl.CERT_REQUIRED
