"""The shape of the house: what knows what, and what importing costs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

import docmind

REPOSITORY = Path(__file__).parents[1]

PACKAGE = REPOSITORY / "docmind"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What a room may not know, docs of the architecture. Whatever is not named here is free.
FORBIDDEN = {
    "config": "*",
    "errors": "*",
    "parse": "library ingest embed passages search context prompts answer backends chats runs evaluate profiles cli"
    " doctor citations",
    "embed": "library ingest passages search answer store parse backends cli vectors",
    "vectors": "library ingest passages search answer store parse cli context prompts chats runs profiles evaluate"
    " citations",
    "store": "library ingest embed passages search answer parse backends cli",
    "library": "search answer ingest passages vectors backends context prompts chats runs profiles evaluate cli parse",
    "passages": "library ingest search answer store parse backends cli",
    "search": "answer ingest backends context prompts chats runs profiles evaluate cli parse",
    "ingest": "answer search backends context prompts chats profiles evaluate cli citations",
    "citations": "library ingest embed search answer store parse backends cli",
    "backends": "library ingest embed search answer store parse passages citations cli context prompts chats runs"
    " vectors",
    "context": "search answer ingest backends cli store",
    "prompts": "search answer ingest backends cli library store",
    "background": "*",
    "hardware": "library ingest embed search answer store parse cli context prompts chats runs",
    "metrics": "ingest embed search answer backends context prompts chats cli parse",
    "trial": "library ingest embed search answer store parse chats runs cli",
    "model_runs": "library ingest embed search answer store parse chats cli",
    "gate": "*",
    "uploads": "ingest embed passages search answer parse backends context prompts chats runs profiles evaluate cli"
    " citations",
}


def room(path):
    """The room a file belongs to: docmind/parse/pdf.py is in parse."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Modules imported when the file is: not those of TYPE_CHECKING blocks, not those inside functions."""

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from walk(node.orelse)
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from walk(ast.iter_child_nodes(node))

    return set(walk(ast.parse(path.read_text(encoding="utf-8")).body))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    """No room imports one it may not know."""
    forbidden = FORBIDDEN.get(room(path), "")
    rooms = (
        {room(source) for source in SOURCES} - {room(path), "errors", "config"}
        if forbidden == "*"
        else set(forbidden.split())
    )
    known = {name.split(".")[1] for name in imports(path) if name.startswith("docmind.")}
    assert not known & rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_knows_no_screen(path):
    """Streamlit is for app.py and pages/ alone; only the command line's launcher may start it."""
    words = "import streamlit" if room(path) == "cli" else "streamlit"
    code = "\n".join(line for line in path.read_text(encoding="utf-8").lower().splitlines() if "knows no" not in line)
    assert words not in re.sub(r'""".*?"""', "", code, flags=re.DOTALL)


def code_of(text):
    """A module without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        may_have_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if may_have_one and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "name",
    [r"llama[._]cpp", "ollama", "lm studio", "lmstudio", "lm_studio", "lm-studio", "openai-compatible", "transformers",
     "azure", "anthropic", "mistral", r"cohere\b", "bedrock", "gemini", "vertex"],
)  # fmt: skip
def test_a_backend_is_named_in_its_own_file_only(name):
    """Its file, the registry, and the example in the error tree's words; one with two ways in, where the other is. The
    one that comes with DocMind is also the example in docstrings.
    """
    allowed = {"backends/__init__.py", "backends/gguf_files.py"}  # where the models of other programs lie
    if name.startswith("llama"):
        allowed.add("backends/openai_compatible.py")  # its own server
    if name.startswith("lm"):
        allowed |= {"backends/openai_compatible.py", "backends/openai_compatible_presets.py"}
    if name.startswith("openai"):
        allowed |= {"backends/lm_studio.py", "backends/lm_studio_socket.py"}
    if name == "transformers":
        allowed.add("embed.py")  # the library, which the embedding model runs on
    if name in ("gemini", "vertex"):
        allowed |= {"backends/google_gemini.py", "backends/google_vertex.py"}  # one package for both
    for path in SOURCES:
        place = str(path.relative_to(PACKAGE)).replace("\\", "/")
        own = place.startswith("backends/") and re.sub(r"\\b|[\W_]", "", name)[:8] in path.stem.replace("_", "")
        if place not in allowed and not own:
            text = path.read_text(encoding="utf-8")
            text = code_of(text) if name.startswith("llama") else text
            assert not re.search(f"(?<!sentence[-_]){name}", text.lower()), place


def test_importing_docmind_reads_nothing_and_loads_nothing(tmp_path, in_child):
    """No numpy, no torch, no LlamaIndex, no folder, no socket, no file outside Python's own."""
    code = """
import json, sys
opened = []
def audit(event, arguments):
    if event == "open" and arguments and isinstance(arguments[0], str):
        opened.append(arguments[0])
    if event in ("os.mkdir", "socket.__new__", "socket.connect", "subprocess.Popen"):
        opened.append(event)
sys.addaudithook(audit)
import docmind
print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), opened]))
"""
    environment = in_child.environment | {"DOCMIND_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    run = subprocess.run(
        [in_child.python, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    modules, opened = json.loads(run.stdout)
    assert not {"numpy", "torch", "llama_index", "sqlite3", "transformers", "llama_cpp", "pypdfium2", "asyncio"} & set(
        modules
    )
    assert [path for path in opened if not path.endswith((".py", ".pyc"))] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["--help"], ["documents"], ["profiles"], ["search", "x"], ["backends"]], ids=lambda argv: argv[0]
)
def test_commands_load_no_more_than_they_need(argv, tmp_path, in_child):
    """Torch and LlamaIndex take seconds: nobody waits for them who asks for a list."""
    code = (
        "import sys\nfrom docmind.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    environment = in_child.environment | {"DOCMIND_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [in_child.python, "-c", code, *argv], env=environment, capture_output=True, text=True, timeout=120
    )
    loaded = {"torch", "llama_index.core.llms", "transformers", "sentence_transformers", "llama_cpp"} & set(
        run.stderr.split()
    )
    if argv[0] == "search":
        loaded -= {"llama_index.core.llms", "transformers"}  # passages are a LlamaIndex transform
    assert not loaded


def test_public_names_are_exactly_those_that_are_there():
    """`from docmind import *` gives each; asking twice gives the same."""
    names = {}
    exec("from docmind import *", names)
    names.pop("__builtins__")
    assert set(names) == set(docmind.__all__)
    from docmind import answer, ingest, library

    assert docmind.ask is answer.ask
    assert docmind.add is ingest.add
    assert docmind.open_library is library.open_library
    with pytest.raises(AttributeError, match="nonsense"):
        docmind.nonsense  # noqa: B018


def test_every_error_has_a_builtin_and_a_code():
    """The tree in the docstring of errors.py is the tree."""
    from docmind import errors

    drawn = re.findall(r"[├└]── (\w+)(?:\((\w+)\))?", errors.__doc__)
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.DocMindError)
    }
    assert {name for name, _ in drawn} | {"DocMindError"} == set(classes)
    for name, builtin in drawn:
        if builtin:
            assert issubclass(classes[name], getattr(__import__("builtins"), builtin)), name
    codes = [kind.default_reason for kind in classes.values()]
    assert len(set(codes)) == len(codes)
    assert errors.LibraryFull("x", "y").hint == "y"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_catches_everything(path):
    """A broad `except` hides what its author did not think of."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            reraises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            assert reraises or caught not in ("everything", "Exception", "BaseException"), f"line {node.lineno}"


def test_every_reason_code_is_documented():
    """docs/reasons.md lists every code that an error can carry."""
    documented = set(re.findall(r"^\| `(\w+)`", (REPOSITORY / "docs" / "reasons.md").read_text(encoding="utf-8"), re.M))
    codes = set()
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        codes |= set(re.findall(r'reason="(\w+)"', source))
        codes |= set(re.findall(r'default_reason(?:: ClassVar\[str\])? = "(\w+)"', source))
    assert codes - {"error"} <= documented
