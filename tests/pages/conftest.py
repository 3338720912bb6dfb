"""The app without a browser: AppTest runs the scripts in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def app(config, monkeypatch):
    """The whole app on this test's data folder, not yet run."""
    # As the server's lifespan does: AppTest asks anew at every run, and would run a page without app.py then.
    made = PagesManager.__init__

    def make(self, *arguments, **options):
        made(self, *arguments, **options)
        PagesManager.uses_pages_directory = False

    monkeypatch.setattr(PagesManager, "__init__", make)
    # No test needs the models before it asks.
    monkeypatch.setattr("pages.parts.frame._preloaded", True)
    st.cache_data.clear()
    st.cache_resource.clear()
    yield AppTest.from_file(str(REPOSITORY / "app.py"), default_timeout=PATIENCE_SECONDS)
    st.cache_data.clear()
    st.cache_resource.clear()
