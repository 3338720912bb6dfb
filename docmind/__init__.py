"""DocMind: ask your own documents on your own machine, and check the answer.

    library = docmind.open_library()          # the data folder
    library.add("report.pdf")                 # documents
    library.search("net sales 2023", k=5)     # passages
    for event in docmind.ask(library, "What were net sales in 2023?"): ...   # an answer as it is written

Importing this reads no file, opens no socket and loads no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docmind.answer import ask
    from docmind.config import Config, load_config
    from docmind.errors import DocMindError
    from docmind.ingest import add
    from docmind.library import Library, open_library

__version__ = "0.1.0"

_PLACES = {
    "ask": "docmind.answer",
    "Config": "docmind.config",
    "load_config": "docmind.config",
    "DocMindError": "docmind.errors",
    "add": "docmind.ingest",
    "Library": "docmind.library",
    "open_library": "docmind.library",
}

__all__ = ["Config", "DocMindError", "Library", "__version__", "add", "ask", "load_config", "open_library"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: numpy and LlamaIndex take seconds nobody waits for otherwise."""
    if name not in _PLACES:
        raise AttributeError(f"module 'docmind' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
