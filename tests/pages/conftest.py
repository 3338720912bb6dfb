"""The app without a browser: AppTest runs the scripts in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS

from docmind import detection, keys, model_runs, runs
from docmind.backends import llama_cpp

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


@pytest.fixture
def nothing_left():
    """What outlives a test: the caches of Streamlit, the child of llama.cpp, what was done with models, keys."""
    _forget()
    yield
    for run in model_runs.model_runs():
        run.stop()
        run.wait(PATIENCE_SECONDS)
        runs.dismiss(run.run_id)
    _forget()


def _forget():
    llama_cpp.close_all()
    st.cache_resource.clear()
    st.cache_data.clear()
    keys._known.clear()
    detection.forget()


@pytest.fixture
def models_page(tmp_path, library, nothing_left):
    """Opens the Models page in an app of its own, as a visitor would."""

    def open_page(sidebar=""):
        script = tmp_path / "small_app.py"
        path = REPOSITORY / "pages" / "models.py"
        text = f"import streamlit as st\npage = st.navigation([st.Page({str(path)!r})])\n{sidebar}\npage.run()\n"
        script.write_text(text, encoding="utf-8")
        return AppTest.from_file(str(script), default_timeout=PATIENCE_SECONDS).run()

    return open_page
