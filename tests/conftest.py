"""A data folder for each test, no way to the network, and a library with a few made-up documents."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from servers import clouds

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from docmind import breaker
from docmind.config import Config
from docmind.embed import EmbeddingIdentity
from docmind.library import Library, NewPassage
from docmind.parse import DocumentInfo, ParsedPage

REPOSITORY = Path(__file__).parents[1]
STORY = """
root ::= paragraph{6}
paragraph ::= sentence sentence sentence "\\n\\n"
sentence ::= [A-Z] [a-z, ]{40,90} ". "
"""
DIMENSION = 8
MADE_UP = EmbeddingIdentity("made-up", DIMENSION, np.eye(DIMENSION, dtype=np.float32)[0])


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    """Each test has a data folder of its own, and closes the log it opened there."""
    monkeypatch.setenv("DOCMIND_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCMIND_EMBEDDING", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # no test asks a server that happens to run
    monkeypatch.setattr("docmind.detection.DEADLINE_SECONDS", 120.0)  # no test depends on how fast the machine is
    monkeypatch.setattr("docmind.detection.FITS_SECONDS", 120.0)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")  # nor the developer's keyring
    for name in clouds.VARIABLES:  # nor a cloud with their keys
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    breaker.forget()  # nor inherits the failures of another
    monkeypatch.setenv("LMSTUDIO_HOST", "127.0.0.1:9")
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("DOCMIND_MODEL_CACHES", "0")  # nor lists the models of the developer
    monkeypatch.delenv("DOCMIND_MODELS", raising=False)
    logger = logging.getLogger("docmind")
    before = logger.propagate, logger.level, logging.raiseExceptions
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate, logger.level, logging.raiseExceptions = before


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """A connection to another machine is an error at once, in the test's own process."""
    connect = socket.socket.connect

    def guarded(self, address):
        is_local = self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        assert is_local, f"a test tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def config(tmp_path):
    """The defaults, with this test's data folder."""
    return Config(home=tmp_path / "home")


@pytest.fixture
def library(config):
    """An empty library."""
    return Library(config)


@pytest.fixture
def insert():
    """Puts a document with made-up vectors into a library: no file is read and no model is loaded."""
    return insert_document


def insert_document(library, name="note.txt", pages=("One page.",), *, folder="/documents", collections=(), seed=None):
    """One passage per page with text; the bytes are the name and the pages."""
    sha256 = hashlib.sha256(
        "\f".join([str(seed if seed is not None else name), *pages]).encode("utf-8", "backslashreplace")
    ).hexdigest()
    random = np.random.default_rng(int(sha256[:8], 16))
    parsed = [
        ParsedPage(n, text, "text" if text else "none", None if text else "scanned", "test")
        for n, text in enumerate(pages, 1)
    ]
    passages = []
    for page in parsed:
        if page.text:
            vector = random.normal(size=DIMENSION).astype(np.float32)
            passages.append(NewPassage(page.number, 0, len(page.text), page.text, vector / np.linalg.norm(vector)))
    document_id, _ = library.insert_document(
        DocumentInfo("text", len(parsed), ""),
        parsed,
        passages,
        path=Path(folder) / name,
        sha256=sha256,
        title=Path(name).stem,
        size_bytes=len("".join(pages)),
        state="ready",
        reason=None,
        hint="",
        collections=collections,
        identity=MADE_UP,
    )
    return document_id


@pytest.fixture
def write_pdf(tmp_path):
    """Writes a PDF, one list of lines per page; an empty list makes a page that shows only a picture."""

    def write(name, pages, folder=None):
        path = Path(folder or tmp_path) / name
        make_pdf(path, pages)
        return path

    return write


def make_pdf(path, pages):
    """A PDF by reportlab, the same bytes each time."""
    from PIL import Image
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), invariant=1, pagesize=(612, 792))
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 720 - 16 * number, line)
        if not lines:
            canvas.drawImage(ImageReader(Image.frombytes("L", (16, 16), bytes(range(256)))), 0, 0, 612, 792)
        canvas.showPage()
    canvas.save()


FILES = {
    "harbour report 2023.pdf": [
        [
            "Harbour report 2023",
            "The harbour of Ellmere handled 48,200 containers in 2023.",
            "Repairs of the north quay cost 3.7 million euros and ended in October.",
        ],
        [
            "The pilot station employs 26 people. Its director is Marta Oldenburg.",
            "Fishing boats landed 912 tonnes of herring, less than the year before.",
        ],
    ],
    "beekeeping.md": "# Beekeeping for beginners\n\n"
    "A colony needs about 20 kilograms of honey to survive the winter.\n\n"
    "## Swarming\n\nBees swarm in May and June, mostly on warm days before noon.\n",
    "recipes.txt": "Lemon cake\n\n"
    "Beat 4 eggs with 200 grams of sugar. Add the juice of 2 lemons. Bake for 45 minutes.\n\f"
    "Onion soup\n\nFry 6 onions in butter for half an hour. Add a litre of broth and a glass of white wine.\n",
}


def write_files(folder):
    """The made-up documents, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            make_pdf(folder / name, content)
    return folder


@pytest.fixture
def files(tmp_path):
    """A folder with three made-up documents: PDF, Markdown and text."""
    return write_files(tmp_path / "files")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A library that holds the made-up documents, embedded by the real model; nobody may change it."""
    folder = tmp_path_factory.mktemp("shelf")
    library = Library(Config(home=folder / "home"))
    results = [*library.add(write_files(folder / "files"), collection="all")]
    assert [result.status for result in results] == ["added"] * 3, results
    return library


@pytest.fixture
def stocked(shelf, config):
    """A copy of the made-up library that a test may change."""
    shutil.copytree(shelf.config.home, config.home, ignore=shutil.ignore_patterns("*.lock"))
    return Library(config)


@pytest.fixture
def talkative(stocked):
    """The made-up library; its starter writes a story of about 300 tokens.

    The grammar makes it so: otherwise a model this small comes to an end whenever it likes.
    """
    from docmind.backends import llama_cpp

    folder = stocked.config.home / "models"
    folder.mkdir(exist_ok=True)
    (folder / "starter.toml").write_text(
        f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\nmax_output_tokens = 500\ntemperature = 1.0\n'
        'system_prompt = "Tell a very long story about the evidence. Never stop."\n'
        f"[options]\ngrammar = '''{STORY}'''\n"
    )
    return stocked


@pytest.fixture
def script(monkeypatch):
    """The scripted backend stands in the registry; gives its script, which is empty."""
    from servers import scripted

    from docmind.backends import REGISTRY

    monkeypatch.setitem(REGISTRY, "scripted", "servers.scripted")
    scripted.reset()
    return scripted.SCRIPT


@pytest.fixture(scope="module")
def end_models():
    """No model's child outlives the tests of a module; nor one that a failed test still holds."""
    yield
    from docmind.backends import REGISTRY

    gc.collect()
    for module in REGISTRY.values():
        close_all = getattr(sys.modules.get(module), "close_all", None)
        if close_all is not None:
            close_all()


@pytest.fixture
def in_child(monkeypatch):
    """What a Python subprocess needs to find this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1"}
    return SimpleNamespace(python=sys.executable, environment=environment)
