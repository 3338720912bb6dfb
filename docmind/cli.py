"""The command line: a front door over public functions. Prints for people, or JSON with --json.

Exit status: 0 something of what was asked was done, 1 nothing was, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docmind.config import Config, load_config
from docmind.errors import DocMindError, SettingsError
from docmind.wording import DOING, counted, left_out_words, step_line, waiting_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from docmind.answer import Answer
    from docmind.backends import Progress
    from docmind.backends.fits import Room
    from docmind.ingest import FileResult
    from docmind.library import Document

# Everything printed for people may come from a document or a model: no escape sequence reaches the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a Windows code page has no word for most of Unicode
    # Given here and not as defaults, which a subcommand would set again over what stood before it.
    arguments = build_parser().parse_args(argv, argparse.Namespace(home=None, json=False, debug=False))
    try:
        return int(arguments.command(arguments))
    except DocMindError as error:
        if arguments.debug:
            traceback.print_exc()
        print(_clean(f"docmind: {error}"), file=sys.stderr)
        if error.hint:
            print(_clean(error.hint), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("docmind: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left (`docmind search … | head`); a second error at exit would only be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", default=argparse.SUPPRESS, metavar="DIR", help="data folder (default: DOCMIND_HOME)")
    shared.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, one object per line"
    )
    shared.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    parser = argparse.ArgumentParser(
        prog="docmind",
        description="Ask your own documents on your own machine, and check the answer.",
        parents=[shared],
    )
    parser.set_defaults(command=_run, port=None, no_browser=False)  # bare `docmind` is `docmind run`
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text, parents=[shared])
        sub.set_defaults(command=run)
        return sub

    sub = command("run", _run, "start the app in the browser (so does docmind alone)")
    sub.add_argument("--port", type=_port, metavar="N", help="the first port to try (default: 8501)")
    sub.add_argument("--no-browser", action="store_true", help="print the address only")

    sub = command("add", _add, "add files and folders to the library")
    sub.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    sub.add_argument("--collection", type=_text, metavar="NAME", help="file them under this name")

    sub = command("documents", _documents, "list the documents")
    sub.add_argument("--collection", type=_text, metavar="NAME")

    sub = command("pages", _pages, "show how each page of a document was read")
    sub.add_argument("document", metavar="DOCUMENT", help="id, name or path")

    sub = command("remove", _remove, "remove documents for good")
    sub.add_argument("documents", nargs="+", metavar="DOCUMENT", help="id, name or path")

    sub = command("search", _search, "find passages")
    sub.add_argument("query", type=_text, metavar="QUERY")
    sub.add_argument("-k", type=_positive, default=5, metavar="N", help="how many (default: 5)")
    sub.add_argument("--collection", type=_text, metavar="NAME")
    sub.add_argument("--document", metavar="DOCUMENT", help="id, name or path")

    sub = command("ask", _ask, "answer a question from the documents")
    sub.add_argument("question", type=_text, metavar="QUESTION")
    sub.add_argument("--profile", metavar="NAME")
    sub.add_argument("--backend", metavar="NAME")
    sub.add_argument("--model", metavar="NAME")
    sub.add_argument("--collection", type=_text, metavar="NAME")
    sub.add_argument("--document", metavar="DOCUMENT", help="id, name or path")
    sub.add_argument("--chat", type=_text, metavar="ID", help="keep question and answer in this chat")

    sub = command("backends", _backends, "show which models can be used")
    sub.add_argument("--all", action="store_true", help="also those that are not available")

    sub = command("download", _download, "fetch a GGUF model from a hub, after saying whether it fits this machine")
    sub.add_argument("source", metavar="REPOSITORY", help="owner/name on the hub, or the https address of a .gguf file")
    sub.add_argument("file", nargs="?", metavar="FILE", help="its name or a part of it, like Q4_K_M; none: list them")
    sub.add_argument("--anyway", action="store_true", help="also a model that is too large for this machine")

    sub = command("profiles", _profiles, "list the model profiles; show, save, remove or test one")
    sub.add_argument(
        "action", nargs="?", choices=("list", "show", "save", "remove", "test"), default="list", metavar="ACTION",
        help="list, show, save, remove or test (default: list)",
    )  # fmt: skip
    sub.add_argument("name", nargs="?", type=_text, metavar="NAME")
    sub.add_argument("--backend", metavar="NAME", help="save: the backend, or auto")
    sub.add_argument("--model", type=_text, metavar="NAME", help="save: the model")
    sub.add_argument(
        "--set", action="append", default=[], type=_text, metavar="KEY=VALUE", dest="settings",
        help="save: any other key of docs/profiles.md; options.NAME=VALUE for one of the backend",
    )  # fmt: skip
    sub.add_argument("--from", metavar="NAME", dest="origin", help="save: begin with a copy of this profile")
    sub.add_argument("--overwrite", action="store_true", help="save: replace one of your own of that name")

    sub = command("settings", _settings, "show who may be sent text and what makes the vectors of search, or change it")
    sub.add_argument("action", nargs="?", choices=("show", "allow", "forbid", "local-only", "embedding"),
                     default="show")  # fmt: skip
    sub.add_argument(
        "value", nargs="?", type=_text, metavar="ADDRESS|on|off|BACKEND:MODEL|default",
        help="http://192.168.1.20:11434; for embedding a model of a backend, or default",
    )  # fmt: skip
    sub.add_argument(
        "--set", action="append", default=[], type=_text, metavar="KEY=VALUE", dest="options",
        help="embedding: url, query_prefix or passage_prefix",
    )  # fmt: skip

    sub = command("keys", _keys, "keep or forget the key of a model server; it is asked for, or read from stdin")
    sub.add_argument("action", nargs="?", choices=("show", "keep", "forget"), default="show")
    sub.add_argument("address", nargs="?", type=_text, metavar="ADDRESS", help="https://api.example.com")

    sub = command("evaluate", _evaluate, "measure search, and answers, on questions with known pages")
    sub.add_argument("file", type=Path, metavar="FILE.jsonl")
    sub.add_argument("-k", type=_positive, default=10, metavar="N", help="depth of MRR (default: 10)")
    sub.add_argument("--answers", action="store_true", help="also let the model answer each question")
    sub.add_argument("--profile", metavar="NAME")

    command("reindex", _reindex, "embed every passage again, after a change of the embedding model")
    command("doctor", _doctor, "check this installation and say how to mend it")
    return parser


# Commands ---------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    import importlib.util
    import subprocess

    script = Path(__file__).parents[1] / "app.py"
    if not script.is_file():
        raise DocMindError(
            f"There is no app.py in {script.parent}: only DocMind's own folder has it.",
            "Install with `pip install -r requirements.txt` in that folder, or start `streamlit run app.py` there.",
        )
    if importlib.util.find_spec("streamlit") is None:
        raise DocMindError(
            "Streamlit, which draws the app, is not installed.",
            f"Install it with `pip install -r {script.parent / 'requirements.txt'}`.",
        )
    # -P: a module in the folder one happens to be in must not stand in for one of Python's own.
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(script)]
    if arguments.port is not None:
        command += ["--server.port", str(_free_port(arguments.port))]
    if arguments.no_browser:
        command += ["--server.headless", "true"]
    environment = os.environ | {"DOCMIND_HOME": str(load_config(arguments.home).home)}
    status: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal status
        status = 128 + number
        # Ctrl+C reached the server too, but a signal sent to this process alone did not. A second SIGINT would make
        # the server leave without storing what is half written; SIGTERM, however often, does not. On Windows
        # terminate() would be a kill, and the console tells all its programs.
        if sys.platform != "win32":
            server.terminate()

    server = subprocess.Popen(command, env=environment)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended = server.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status is not None:
        return status
    return ended if ended >= 0 else 128 - ended  # as a shell says it


def _free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on, at most a hundred further; said when it is another."""
    import socket

    for port in range(first, min(first + 101, 65536)):
        with socket.socket() as probe:
            if sys.platform != "win32":  # where it would take a port from the one who has it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:  # taken, or not for everybody: the next
                continue
        if port != first:
            _print(f"Port {first} is taken; this is port {port}.", file=sys.stderr)
        return port
    raise DocMindError(f"No port from {first} on is free.", "Name another with --port.")


def _add(arguments: argparse.Namespace) -> int:
    from docmind import ingest

    library = _library(arguments)
    collections = [arguments.collection] if arguments.collection else []
    summary: ingest.Summary | None = None
    for event in ingest.add(library, arguments.paths, collections=collections):
        match event:
            case ingest.Waiting(holder):
                if arguments.json:
                    _print_json({"waiting": holder})
                else:
                    _print(f"Waiting: {holder} is adding documents.", file=sys.stderr)
            case ingest.FileStarted(path, number, total):
                _status(f"[{number}/{total}] {Path(path).name}")
            case ingest.PagesRead(path, done, total):
                _status(f"{Path(path).name}: page {done} of {total}")
            case ingest.FileFinished(result):
                _status("")
                _print_json(asdict(result)) if arguments.json else _print_file(result)
            case ingest.Summary():
                summary = event
    assert summary is not None
    achieved = sum(summary.counts[status] for status in ("added", "unchanged", "replaced", "partial"))
    if arguments.json:
        _print_json({"summary": {**summary.counts, "seconds": round(summary.seconds, 3)}})
    elif not sum(summary.counts.values()):
        _print("No files found there.")
    else:
        _print(
            ", ".join(f"{count} {status}" for status, count in summary.counts.items() if count)
            + f" · {summary.seconds:.1f} s"
        )
    return 0 if achieved else 1


def _print_file(result: FileResult) -> None:
    line = f"{result.status:9} {_one_line(Path(result.path).name)}"
    if result.pages is not None:
        line += f" · {counted(result.pages, 'page')}"
        if result.pages_without_text:
            line += f", {result.pages_without_text} without text"
        line += f" · {result.seconds:.1f} s"
    _print(line)
    if result.hint:
        _print(f"          {result.hint}")


def _documents(arguments: argparse.Namespace) -> int:
    documents = _library(arguments).documents(arguments.collection)
    for document in documents:
        if arguments.json:
            names = ("document_id", "name", "path", "collections", "pages", "passages", "state", "added_at", "sha256",
                     "title", "pages_without_text", "reason", "hint", "size_bytes")  # fmt: skip
            _print_json({name: getattr(document, name) for name in names})
        else:
            _print(_document_line(document))
    if not documents and not arguments.json:
        place = f" in {arguments.collection}" if arguments.collection else " yet"
        _print(f"There are no documents{place}. Add some: docmind add FILE_OR_FOLDER")
    return 0


def _document_line(document: Document) -> str:
    parts = [counted(document.pages, "page"), document.state]
    if document.collections:
        parts.append(", ".join(document.collections))
    return f"{document.document_id}  {_one_line(document.name)} · {' · '.join(parts)}"


def _pages(arguments: argparse.Namespace) -> int:
    library = _library(arguments)
    for page in library.pages(library.document(arguments.document).document_id):
        row = {"page": page.page, "characters": len(page.text), "source": page.source, "reason": page.reason}
        if arguments.json:
            _print_json(row)
        else:
            _print(f"page {page.page:4}  {page.source:4}  {len(page.text):6} characters  {page.reason or ''}".rstrip())
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    removed = _library(arguments).remove(arguments.documents)
    if arguments.json:
        _print_json({"removed": [document.document_id for document in removed]})
    else:
        for document in removed:
            _print(f"removed {_one_line(document.name)}")
    return 0


def _search(arguments: argparse.Namespace) -> int:
    library = _library(arguments)
    hits = library.search(arguments.query, arguments.k, collection=arguments.collection, document=arguments.document)
    for hit in hits:
        if arguments.json:
            names = ("rank", "document_id", "document", "page", "start", "end", "text", "score")
            _print_json({name: getattr(hit, name) for name in names})
        else:
            _print(f"{hit.rank}. {_one_line(hit.document)}, page {hit.page}  ({hit.score:.2f})")
            _print("   " + " ".join(hit.text.split())[:300])
    if not hits and not arguments.json:
        _print("Nothing found.")
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from docmind import answer as answers
    from docmind.events import FellBack, ModelWaiting, StepFinished, StepStarted, TextDelta, TextLeaves

    library = _library(arguments)
    answer: Answer | None = None
    with _interrupt_sets_event() as stop:
        events = answers.ask(
            library, arguments.question, profile=arguments.profile, backend=arguments.backend, model=arguments.model,
            collections=[arguments.collection] if arguments.collection else [],
            documents=[arguments.document] if arguments.document else [],
            chat=arguments.chat, stop=stop,
        )  # fmt: skip
        for event in events:
            match event:
                case StepStarted(tool, asked):
                    _status(f"{DOING.get(tool, tool)} {f'“{asked}” ' if asked else ''}…")
                case StepFinished(tool, asked, hits, documents, seconds):
                    _status("")
                    if arguments.json:
                        _print_json({"step": {"tool": tool, "input": asked, "hits": hits, "seconds": seconds}})
                    else:
                        _print(step_line(tool, asked, hits, documents, seconds), file=sys.stderr)
                case FellBack(before, after, reason, message, text):
                    _status("")
                    if arguments.json:
                        _print_json({"fallback": {"from": before, "to": after, "reason": reason, "attempt": text}})
                    else:
                        if text:  # what the first one wrote stands by itself
                            sys.stdout.write("\n\n")
                            sys.stdout.flush()
                        _print(f"{before} could not go on: {message} {after} is asked instead.\n", file=sys.stderr)
                case ModelWaiting():
                    _status(waiting_line(event))
                case TextLeaves(place, host) if not arguments.json:
                    _status("")
                    _print(f"Question and passages go to {host} on {place}.", file=sys.stderr)
                case TextDelta(text, replaces):
                    _status("")
                    if arguments.json:
                        _print_json({"delta": text} | ({"replaces": True} if replaces else {}))
                    else:
                        sys.stdout.write("\n" * replaces + _clean(text))
                        sys.stdout.flush()
                case answers.Answer():
                    answer = event
        interrupted = stop.is_set()
    assert answer is not None
    if arguments.json:
        _print_json(answer.as_json())
    else:
        _print_proof(answer)
    if interrupted:
        return 130
    return 1 if answer.finished == "failed" else 0


def _print_proof(answer: Answer) -> None:
    """Under the answer: each sentence with its quote, or that it has none; then one line of figures."""
    _print("")
    if answer.finished == "stopped":
        _print("\nStopped. What was written so far is above.")
    elif answer.finished == "cut":
        _print(
            "\nThe answer was cut off: "
            + {"cut_at_limit": "it reached its length limit."}.get(answer.reason or "", f"{answer.reason}.")
        )
    if answer.citations:
        _print("")
    for citation in answer.citations:
        quote = " ".join(citation["quote"].split())
        _print(f"[{citation['number']}] {_one_line(citation['document'])}, page {citation['page']}: “{quote}”")
    unproven = [sentence for sentence in answer.sentences if sentence.is_claim and sentence.support == "none"]
    if unproven:
        _print("")
    for sentence in unproven:
        _print(f"⚠ No passage says this: “{' '.join(sentence.text.split())}”")
    if answer.nearest:
        _print("\nNearest passages:")
    for passage in answer.nearest:
        text = _one_line(passage["text"])[:300]
        _print(f"   {_one_line(passage['document'])}, page {passage['page']}: “{text}”")
    timings = answer.timings
    figures = [f"{timings['total_s']:.1f} s"]
    if timings["first_token_s"] is not None:
        figures.append(f"first word after {timings['first_token_s']:.1f} s")
    if timings["tokens_per_second"]:
        figures.append(f"{timings['tokens_per_second']:.0f} tok/s")
    figures.append(answer.model)
    if timings["prompt_tokens"]:
        figures.append(f"{timings['prompt_tokens']:,}/{answer.context['window']:,} tokens read")
    left_out = answer.context.get("left_out")
    if left_out:
        figures.append(f"{counted(len(left_out), 'passage')} left out")
    _print("\n" + " · ".join(figures), file=sys.stderr)
    if answer.choice:
        _print(answer.choice, file=sys.stderr)
    if answer.settings_left_out:
        _print(left_out_words(answer.settings_left_out, answer.backend) + ".", file=sys.stderr)


def _backends(arguments: argparse.Namespace) -> int:
    from docmind.detection import PATIENT_SECONDS, detect_all

    for found in detect_all(_config(arguments), wait_seconds=PATIENT_SECONDS):
        if not found.available and not arguments.all and not arguments.json:
            continue
        if arguments.json:
            row = asdict(found)
            for model in row["models"]:
                model["path"] = str(model["path"]) if model["path"] else None
            _print_json(row)
            continue
        _print(
            f"{found.label} {found.version or ''} · "
            + ("available" if found.available else f"not available: {found.reason}")
        )
        if found.hint:
            _print(f"  {found.hint}")
        for model in found.models:
            details = [model.quantization or "", f"{model.size_bytes / 1e9:.1f} GB" if model.size_bytes else ""]
            details.append(f"window {model.context_window:,}" if model.context_window else "")
            details.append(getattr(model, "reason", None) or "")
            _print(f"  {model.name} · " + " · ".join(detail for detail in details if detail))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from docmind import download as downloads
    from docmind.backends import GGUF_BACKEND
    from docmind.backends.fits import fits

    config = _config(arguments)
    here = downloads.room_here()
    if arguments.file is None and "://" not in arguments.source:
        return _list_hub(config, arguments, here)
    model, header = downloads.look(config, downloads.find(config, arguments.source, arguments.file))
    fit = fits(header, model.size_bytes or 0, here)
    if arguments.json:
        _print_json({"file": model.files[0].name, "size_bytes": model.size_bytes, "fits": asdict(fit)})
    else:
        _print(f"{model.name} · {(model.size_bytes or 0) / 1e9:.1f} GB\n{fit.sentence}", file=sys.stderr)
    if fit.verdict == "too_large" and fit.largest_window is None and not arguments.anyway:
        raise DocMindError(
            f"{model.name} was not fetched: it is too large for this machine.",
            "Choose a smaller one, or fetch it all the same with --anyway.",
            reason="out_of_memory",
        )

    def show(progress: Progress) -> None:
        if arguments.json:
            _print_json({"progress": {"doing": progress.doing, "done": progress.done, "total": progress.total}})
        else:
            share = f" · {100 * progress.done / progress.total:.0f} %" if progress.total else ""
            _status(f"{progress.doing} {progress.done / 1e6:,.0f} MB{share}")

    with _interrupt_sets_event() as stop:
        path = downloads.download(config, model, progress=_at_most_every(0.2, show), stop=stop)
    if path is None:
        _print("Stopped. What came is kept: the same command goes on from there.", file=sys.stderr)
        return 130
    sha256 = downloads.remembered_sha256(path)
    if arguments.json:
        _print_json({"path": str(path), "size_bytes": model.size_bytes, "sha256": sha256, "model": model.name})
    else:
        _print(f"{path}\nSHA-256 {sha256}" + ("" if model.files[0].sha256 else " (the source named none to compare)"))
        _print(f'Use it: docmind ask --backend {GGUF_BACKEND} --model "{model.name}" "…"')
    return 0


def _list_hub(config: Config, arguments: argparse.Namespace, here: Room) -> int:
    """The models of a repository, and whether they fit."""
    from docmind import download as downloads

    offers = downloads.offers(config, arguments.source, here)
    for offer in offers:
        file, size, fit = offer.model.files[0], offer.model.size_bytes, offer.fit
        if arguments.json:
            row = {"file": file.name, "model": offer.model.name, "size_bytes": size, "sha256": file.sha256}
            _print_json({**row, "fits": None if fit is None else asdict(fit)})
        else:
            shown = f"{size / 1e9:.1f} GB" if size else "size unknown"
            _print(f"{file.name} · {shown}\n    {fit.sentence if fit else ''}".rstrip())
    if not offers:
        _print(f"{arguments.source} has no GGUF file.", file=sys.stderr)
    return 0 if offers else 1


def _at_most_every(seconds: float, show: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """The same, called less often; the last step is always shown."""
    shown_at = 0.0

    def sometimes(progress: Progress) -> None:
        nonlocal shown_at
        if progress.done == progress.total or time.monotonic() - shown_at >= seconds:
            shown_at = time.monotonic()
            show(progress)

    return sometimes


def _profiles(arguments: argparse.Namespace) -> int:
    from docmind import cli_profiles

    with _interrupt_sets_event() as stop:
        for said in cli_profiles.run(_config(arguments), arguments, stop):
            if said.is_passing:
                _status(said.text)
            elif arguments.json:
                _print_json(said.row or {})
            else:
                _print(said.text)
        return 130 if stop.is_set() else 0


def _settings(arguments: argparse.Namespace) -> int:
    import dataclasses

    from docmind.backends.places import allow, where_text_goes
    from docmind.settings import change_settings, read_settings

    config, value = _config(arguments), arguments.value
    settings = read_settings(config)
    match arguments.action:
        case "allow" | "forbid":
            try:
                settings = allow(config, value or "", is_allowed=arguments.action == "allow")
            except ValueError as error:
                hint = "Write it as http://192.168.1.20:11434."
                raise SettingsError(f"'{value or ''}' is no address.", hint) from error
        case "local-only":
            if value not in ("on", "off"):
                raise SettingsError("It is on or off.", "Run: docmind settings local-only on")
            settings = change_settings(config, lambda s: dataclasses.replace(s, local_only=value == "on"))
        case "embedding":
            return _choose_embedding(arguments, config)
    if arguments.json:
        _print_json({name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()})
        return 0
    _print(f"local only   {'on' if settings.local_only else 'off'}")
    for address in settings.allowed:
        _print(f"allowed      {address} ({where_text_goes(address)[0]})")
    if not settings.allowed:
        _print("allowed      no address beyond this device")
    _print(f"embedding    {settings.embedding or 'the model that comes with DocMind'}")
    for name, text in settings.embedding_options.items():
        _print(f"  {name:14} {text}")
    return 0


def _choose_embedding(arguments: argparse.Namespace, config: Config) -> int:
    """Another model for the vectors of search: tried, kept, and what follows from it said."""
    from docmind import vectors
    from docmind.embed import PACKAGED, same_model
    from docmind.library import open_library

    if not arguments.value:
        raise SettingsError("Which model makes the vectors?", "Run: docmind settings embedding BACKEND:MODEL")
    options = dict(given.partition("=")[::2] for given in arguments.options)
    probe = vectors.choose(config, arguments.value, options)
    library = open_library(config=config) if config.database.exists() else None
    stored = library.embedding_identity() if library is not None else None
    passages = library.counts()["passages"] if library is not None else 0
    if probe is None:
        is_other = stored is not None and stored.name != PACKAGED
        lines = ["The vectors of search are made by the model that comes with DocMind."]
    else:
        is_other = stored is not None and not same_model(stored, probe.identity)
        place, host = vectors.destination(config, probe.choice)
        lines = [
            f"The vectors of search are made by {probe.choice.name}: {probe.identity.dimension} numbers, measured"
            f" {probe.seconds_per_passage:.3f} s a passage.",
            f"The text of all documents, and every question, goes to {host} on {place}.",
            "Every question asks it once more: a server with room for one model loads it in place of the chat model"
            " and back again, which may take longer than the answer.",
        ]
        for name, text in probe.choice.options.items():
            lines.append(f"  {name:14} {text}")
    if os.environ.get("DOCMIND_EMBEDDING"):
        lines.append("DOCMIND_EMBEDDING is set and wins over this, until it is unset.")
    if is_other:
        takes = "" if probe is None else f" about {_minutes(passages * probe.seconds_per_passage)} for"
        lines.append(f"Nothing is found until your documents are indexed again,{takes} {counted(passages, 'passage')}.")
        lines.append("Run: docmind reindex")
    if arguments.json:
        chosen = None if probe is None else probe.choice
        _print_json(
            {
                "embedding": chosen.name if chosen else "",
                "embedding_options": dict(chosen.options) if chosen else {},
                "dimension": None if probe is None else probe.identity.dimension,
                "seconds_per_passage": None if probe is None else round(probe.seconds_per_passage, 4),
                "passages": passages,
                "reindex_needed": is_other,
            }
        )
    else:
        _print("\n".join(lines))
    return 0


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _keys(arguments: argparse.Namespace) -> int:
    from docmind.keys import forget_key, keep_key, keyring_name

    ring = keyring_name()
    if arguments.action == "forget":
        forget_key(arguments.address or "")
    if arguments.action == "keep":
        if ring is None:  # nothing would remember it when this command has ended
            raise SettingsError(
                "This system has no keyring that guards keys.",
                "Set the key in the environment, or give it on the Models page at each start.",
                reason="no_keyring",
            )
        import getpass

        # Never as an argument: those are seen by everybody on the machine, and kept by the shell.
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline()
        keep_key(arguments.address or "", key)
    if arguments.json:
        _print_json({"keyring": ring})
    else:
        _print(f"keyring      {ring or 'none that guards keys'}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from docmind.evaluate import evaluate, evaluate_answers, read_questions, summarise, summarise_answers

    questions = read_questions(arguments.file)
    library = _library(arguments)
    scores = []
    for number, score in enumerate(evaluate(library, questions, arguments.k), start=1):
        scores.append(score)
        _status(f"question {number} of {len(questions)}")
    summary = summarise(scores)
    if arguments.answers:
        graded = []
        for number, grade in enumerate(evaluate_answers(library, questions, arguments.profile), start=1):
            graded.append(grade)
            _status(f"answer {number} of {len(questions)}")
            if arguments.json:
                _print_json(asdict(grade))
        summary |= summarise_answers(graded)
    _status("")
    if arguments.json:
        _print_json(summary)
    else:
        for name, value in summary.items():
            _print(f"{name:24} {value}")
    return 0


def _reindex(arguments: argparse.Namespace) -> int:
    from docmind import ingest

    total = 0
    for event in ingest.reindex(_library(arguments)):
        total = event.total
        _status(f"passage {event.done} of {event.total}")
    _status("")
    _print_json({"passages": total}) if arguments.json else _print(f"{total} passages indexed again")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from docmind.doctor import run_checks

    all_ok = True
    for check in run_checks(_config(arguments)):
        all_ok &= check.ok
        if arguments.json:
            _print_json(asdict(check))
        else:
            _print(f"{'✓' if check.ok else '✗'} {check.check:14} {check.detail}")
            if check.hint:
                _print(f"  {'':14} {check.hint}")
    return 0 if all_ok else 1


# Printing ---------------------------------------------------------------------------------------------------------


def _config(arguments: argparse.Namespace) -> Config:
    from docmind.log import start_logging

    config = load_config(arguments.home)
    start_logging(config)
    return config


def _library(arguments: argparse.Namespace) -> Any:
    from docmind.library import open_library

    return open_library(config=_config(arguments))


def _clean(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _one_line(name: str) -> str:
    """A file's name without line breaks: one that holds any could write a line of its own."""
    return " ".join(name.split())


def _print(text: str, file: Any = None) -> None:
    _status("")
    print(_clean(text), file=file or sys.stdout, flush=True)


def _print_json(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


_status_length = 0


def _status(text: str) -> None:
    """One line that is written over by the next, on a terminal only."""
    global _status_length
    if not sys.stderr.isatty():
        return
    text = " ".join(_clean(text).split())[:100]
    if text or _status_length:
        sys.stderr.write("\r" + text.ljust(_status_length) + ("\r" if not text else ""))
        sys.stderr.flush()
    _status_length = len(text)


def _text(argument: str) -> str:
    """What was typed, without bytes that are no UTF-8: neither SQLite nor a tokenizer takes them."""
    return argument.encode("utf-8", "replace").decode()


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError("a number from 1 to 65535")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError("a number from 1 to 1000")
    return value


class _interrupt_sets_event:  # used like a function: `with _interrupt_sets_event() as stop`
    """The first Ctrl-C asks the model to stop and keeps what was written; the second ends the program."""

    def __enter__(self) -> threading.Event:
        self.stop = threading.Event()
        self.before: Any = signal.signal(signal.SIGINT, self._handle)
        return self.stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)


if __name__ == "__main__":
    sys.exit(main())
