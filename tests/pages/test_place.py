"""Where the next question goes: said before it is sent, and allowed by a person."""

from __future__ import annotations

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS

from docmind.backends.places import allow
from docmind.settings import Settings, read_settings, save_settings
from pages.parts.safe import plain


@pytest.fixture
def nothing_cached():
    """The caches of Streamlit outlive a test, the configuration among them."""
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def place(config, nothing_cached):
    """Draws the place of an address in an app of its own, before anything else is there."""

    def draw(url, fallbacks=()):
        script = f"from pages.parts.place import draw_place\ndraw_place({url!r}, fallbacks={fallbacks!r})\n"
        return AppTest.from_string(script, default_timeout=PATIENCE_SECONDS).run()

    return draw


def captions(app):
    """What is said."""
    assert not app.exception
    return [caption.value for caption in app.caption]


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:11434"])
def test_a_model_on_this_device_needs_no_word(place, url):
    """Nothing leaves."""
    app = place(url)
    assert captions(app) == [":green[●] on this device"]
    assert [button.key for button in app.button] == []


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://[::1]:11434", None), ("http://192.168.1.20:11434", "192.168.1.20"),
     ("http://[2001:db8::1]:11434", "2001:db8::1")],
)  # fmt: skip
def test_who_goes_on_beyond_this_device_is_said(place, config, url, said):
    """Where it is allowed."""
    if said:
        assert len(captions(place(None, [url]))) == 1
        allow(config, url)
    words = captions(place(None, [url]))[1:]
    assert words == ([f":orange[If it fails: {plain(said)}]"] if said else [])


@pytest.mark.parametrize(
    ("search_url", "said"),
    [("http://127.0.0.1:11434", 0), ("http://192.168.1.20:11434", 1), ("https://api.example.com/v1", 1)],
)
def test_a_search_model_beyond_this_device_is_said_beside_the_model(place, config, search_url, said):
    """Questions go there too; where both are one machine it is said once."""
    save_settings(config, Settings(embedding="ollama:x", embedding_options={"url": search_url}))
    assert len(captions(place(None))) == 1 + said
    assert any(caption.startswith("Search :") for caption in captions(place(None))) == bool(said)
    assert not any(caption.startswith("Search :") for caption in captions(place(search_url)))


def test_an_address_beyond_this_device_is_allowed_once_and_the_word_can_be_taken_back(place, config):
    """It is kept for the address, not for the session."""
    url = "http://192.168.1.20:11434"
    app = place(url)
    assert captions(app)[0] == f":orange[●] on your network: {plain('192.168.1.20')}"
    assert f"would be sent to {plain('192.168.1.20')}" in captions(app)[1]
    app.button(key="allow").click().run()
    assert read_settings(config).allowed == (url,)
    assert len(captions(app)) == 1
    assert [button.key for button in place(url).button] == ["forbid"]
    assert [button.key for button in place("http://192.168.1.20:80").button] == ["allow"]
    app.button(key="forbid").click().run()
    assert read_settings(config).allowed == ()
    assert [button.key for button in app.button] == ["allow"]


def test_local_only_is_one_switch(place, config):
    """It shows what the file says, whoever wrote it, and offers no way around."""
    app = place("https://api.example.com")
    app.toggle[0].set_value(True).run()
    assert read_settings(config).local_only
    assert "this model is not asked" in captions(app)[1]
    assert [button.key for button in app.button] == []
    assert place(None).toggle[0].value
    config.settings.write_text("local_only = false", encoding="utf-8")
    assert not app.run().toggle[0].value


def test_broken_settings_are_an_error_with_a_remedy_and_no_permission(place, config):
    """Instead of a switch that shows what is not so."""
    config.home.mkdir(parents=True, exist_ok=True)
    config.settings.write_text("local_only = perhaps", encoding="utf-8")
    app = place("http://192.168.1.20:11434")
    assert captions(app) == []
    assert "Mend or remove the file" in app.error[0].value
    assert not app.toggle


def test_the_name_of_a_host_is_no_markup(place):
    """It may come from a profile of somebody else."""
    app = place("http://![x](http:--evil.example)")
    assert all("![" not in caption for caption in captions(app))


def test_what_is_not_known_yet_is_not_called_this_device(config, nothing_cached):
    """A server that has not answered may be anywhere."""
    script = "from pages.parts.place import draw_place\ndraw_place(None, is_known=False)\n"
    app = AppTest.from_string(script, default_timeout=PATIENCE_SECONDS).run()
    assert captions(app) == [":gray[○] not known yet where it runs"]


def test_a_model_beyond_this_device_that_may_go_on_is_named(config, nothing_cached):
    """Once it is allowed; until then it is not asked."""
    url = "http://192.168.1.20:11434"
    script = f"from pages.parts.place import draw_place\ndraw_place(None, fallbacks=[{url!r}, None])\n"
    app = AppTest.from_string(script, default_timeout=PATIENCE_SECONDS).run()
    assert len(captions(app)) == 1
    allow(config, url)
    assert f"If it fails: {plain('192.168.1.20')}" in captions(app.run())[1]
    app.toggle[0].set_value(True).run()
    assert len(captions(app)) == 1


def test_an_address_that_cannot_be_allowed_is_an_error_with_a_remedy(place):
    """Instead of a page that breaks."""
    app = place("http://")
    app.button(key="allow").click().run()
    assert not app.exception
    assert "is no address" in app.error[0].value


def test_switching_with_broken_settings_is_an_error(place, config):
    """They broke after the page was drawn."""
    app = place(None)
    config.home.mkdir(parents=True, exist_ok=True)
    config.settings.write_text("local_only = perhaps", encoding="utf-8")
    app.toggle[0].set_value(True).run()
    assert not app.exception
    assert "Mend or remove the file" in app.error[0].value
