"""The whole app on one screen. Start it with `streamlit run app.py`, from any folder, or with `docmind`.

This file is run in two ways. The server imports it once and finds `app`: the pages with a gate in front of them, so
that they are never served without it. Then each visitor's session runs it again and again, and it draws.
"""

from __future__ import annotations

import asyncio
import os
import threading
import webbrowser
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config as server_config
from streamlit.runtime.pages_manager import PagesManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from docmind import gate
from docmind.errors import DocMindError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGES = Path(__file__).parent / "pages"
# Drawn here, as is everything else: for an icon by name the browser would ask a font host on the internet.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect x="5" y="2" width="22" height="28" rx="4" '
    'fill="#3d63b8"/><path d="M10 10h12M10 22h8" stroke="#fff" stroke-width="2.4" stroke-linecap="round"/>'
    '<path d="M9 16h14" stroke="#ffd75e" stroke-width="4" stroke-linecap="round"/></svg>'
)


def draw() -> None:
    """One run of the script in a visitor's session: the frame, then the page that was chosen."""
    st.set_page_config(page_title="DocMind", page_icon=ICON, layout="wide")
    pages = [
        st.Page(PAGES / "chat.py", title="Ask", icon=":material/forum:", default=True),
        st.Page(PAGES / "documents.py", title="Documents", icon=":material/description:"),
        st.Page(PAGES / "models.py", title="Models", icon=":material/memory:"),
        st.Page(PAGES / "performance.py", title="Performance", icon=":material/speed:"),
    ]
    from docmind import detection
    from pages.parts import frame
    from pages.parts.sidebar import draw_sidebar, watch_backends

    page = st.navigation(pages)
    try:
        with st.sidebar:
            draw_sidebar()
    except DocMindError as error:  # the library cannot be opened, say: no page could do without it
        frame.show_error(error)
        return
    drawn = detection.said(frame.config())
    page.run()
    with st.sidebar:
        watch_backends(drawn)
    frame.preload()


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """What happens once, when the server starts and when it stops."""
    # With a folder named pages beside it, the first visit of all to /documents would run that page without this file:
    # the server thinks so until st.navigation was called once. Remove it when pages/ no longer means that.
    PagesManager.uses_pages_directory = False
    if share:
        port = share.port or st.get_option("server.port")
        print(f"  Shared. Others open http://{share.host}:{port}/?token=YOUR_TOKEN\n", flush=True)
    if not st.get_option("server.headless"):
        address = f"http://{st.get_option('browser.serverAddress')}:{st.get_option('server.port')}"
        # A moment later, when the port answers; in a thread, for some browsers are waited for until they are closed.
        timer = threading.Timer(0.2, webbrowser.open, [address])
        timer.daemon = True
        timer.start()
    yield
    from docmind import runs

    await asyncio.to_thread(runs.stop_all)  # a partial answer is stored, not lost


if get_script_run_ctx(suppress_warning=True) is None:
    try:
        share = gate.read_share(os.environ)
        policy = gate.content_security_policy(Path(st.__file__).parent / "static" / "index.html")
        app = st.App(__file__, middleware=[Middleware(gate.Gate, policy=policy, share=share)], lifespan=lifespan)
        # After st.App, which is what makes the configuration beside this file count.
        gate.check_address(st.get_option("server.address") or "0.0.0.0", share)
    except DocMindError as error:
        raise SystemExit(f"docmind: {error}\n{error.hint}") from None
    if share:
        # The server has a list of its own, for websockets; the gate has looked at the host before.
        server_config.set_option("server.allowedHosts", [*st.get_option("server.allowedHosts"), share.host.strip("[]")])
else:
    draw()
