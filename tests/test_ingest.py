"""Files → library: what comes in and how it is told, one at a time, and what a stop, a kill or a full disk leaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_library import bytes_of, check_nothing_is_half
from waiting import PATIENCE_SECONDS, is_gone, wait_until

from docmind import embed, ingest, runs, store
from docmind.config import Config
from docmind.embed import EmbeddingIdentity, load_tokenizer
from docmind.errors import BackendUnavailable, EmbeddingChanged, LibraryFull
from docmind.ingest import FileFinished, FileStarted, PagesRead, Summary, Waiting, add, title_of
from docmind.library import Library
from docmind.parse import DocumentInfo
from docmind.passages import embedded_text


def results_of(events):
    """Status by file name."""
    return {Path(event.result.path).name: event.result for event in events if isinstance(event, FileFinished)}


def add_all(library, *paths, collections=()):
    """Add and wait."""
    return results_of(add(library, paths, collections=collections))


def states_of_runs(library):
    """State of each ingestion, oldest first."""
    with store.reading(library.path) as db:
        return [
            row[0] for row in db.execute("SELECT state FROM runs WHERE kind = 'ingestion' ORDER BY started_at, rowid")
        ]


def children():
    """Processes this one has started."""
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


# What comes in ----------------------------------------------------------------------------------------------------


def test_a_folder_is_added_whole(shelf):
    """Three kinds of file, every page, nothing half; passages and titles as the model reads them."""
    documents = {document.name: document for document in shelf.documents("all")}
    assert {name: d.pages for name, d in documents.items()} == {
        "beekeeping.md": 1,
        "harbour report 2023.pdf": 2,
        "recipes.txt": 2,
    }
    assert all(document.state == "ready" and document.reason is None for document in documents.values())
    assert documents["beekeeping.md"].title == "Beekeeping for beginners"
    assert "48,200 containers" in shelf.page(documents["harbour report 2023.pdf"].document_id, 1).text
    check_nothing_is_half(shelf)
    for passage in shelf.passages(range(1, 20)):
        read = embedded_text(passage.title, passage.text)
        assert len(load_tokenizer().encode(read, add_special_tokens=False).ids) <= shelf.config.passage_tokens
    assert states_of_runs(shelf) == ["complete"]


def test_vectors_are_those_of_the_embedding_model(shelf):
    """Title in front, unit length; close to what the model says of the same text alone."""
    index = shelf.vector_index()
    assert np.allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-4)
    (passage,) = shelf.passages([int(index.passage_ids[0])])
    assert float(index.vectors[0] @ embed.embed_query(embedded_text(passage.title, passage.text))) > 0.99


def test_adding_the_same_file_twice_changes_nothing(library, files):
    """Nor does adding a copy of it under another name: the same bytes are one document."""
    first = add_all(library, files / "recipes.txt", collections=["kitchen"])["recipes.txt"]
    generation = library.counts()["generation"]
    again = add_all(library, files / "recipes.txt")["recipes.txt"]
    shutil.copy(files / "recipes.txt", files / "copy.txt")
    copy = add_all(library, files / "copy.txt", collections=["copies"])["copy.txt"]
    assert (first.status, again.status, copy.status) == ("added", "unchanged", "unchanged")
    assert first.document_id == again.document_id == copy.document_id
    assert again.passages == first.passages
    assert library.counts()["generation"] == generation
    (document,) = library.documents()
    assert document.name == "recipes.txt"
    assert document.collections == ("copies", "kitchen")
    check_nothing_is_half(library)


def test_a_changed_file_replaces_what_it_was(library, files):
    """Its collections stay, its old words go from the disk; the other paths to the old bytes keep them."""
    path = files / "recipes.txt"
    path.write_text("Pumpernickel with zwiebelquark.", encoding="utf-8")
    old = add_all(library, path, collections=["kitchen"])["recipes.txt"]
    path.write_text("Nothing but porridge.", encoding="utf-8")
    new = add_all(library, path)["recipes.txt"]
    assert new.status == "replaced"
    assert new.document_id != old.document_id
    (document,) = library.documents()
    assert document.collections == ("kitchen",)
    assert b"zwiebelquark" not in bytes_of(library.config.home).lower()
    check_nothing_is_half(library)


def test_a_path_is_one_path_however_it_is_written(library, files, monkeypatch):
    """With "..", relative or absolute: a change is noticed by each."""
    (files / "sub").mkdir()
    path = files / "recipes.txt"
    add_all(library, files / "sub" / ".." / "recipes.txt")
    path.write_text("Only porridge is left.", encoding="utf-8")
    monkeypatch.chdir(files)
    assert add_all(library, Path("recipes.txt"))["recipes.txt"].status == "replaced"
    assert len(library.documents()) == 1


def test_a_folder_is_searched_below_but_not_in_hidden_places(library, files):
    """Names nobody means are passed over; a file named twice is added once; no folder is followed in circles."""
    (files / "deep" / "er").mkdir(parents=True)
    (files / "deep" / "er" / "found.txt").write_text("It was found.")
    for hidden in (".hidden.txt", "~$lock.txt"):
        (files / hidden).write_text("not meant")
    (files / ".git").mkdir()
    (files / ".git" / "config.txt").write_text("not meant")
    with suppress(OSError):  # Windows may not allow links
        (files / "deep" / "circle").symlink_to(files, target_is_directory=True)
    results = [e for e in add(library, [files, files / "recipes.txt", files / "deep"]) if isinstance(e, FileFinished)]
    names = sorted(Path(event.result.path).name for event in results)
    assert names == ["beekeeping.md", "found.txt", "harbour report 2023.pdf", "recipes.txt"]


def test_a_name_that_is_no_utf8_does_not_stop_the_others(library, tmp_path):
    """Linux allows any bytes."""
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("A café by the sea.")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (folder / "z.txt").write_text("A second file.")
    assert [result.status for result in add_all(library, folder).values()] == ["added", "added"]
    check_nothing_is_half(library)


# How it is told ---------------------------------------------------------------------------------------------------


def test_events_tell_page_by_page_how_far_it_is(library, write_pdf):
    """A file of 20 pages is told about in steps of a few pages, and the last says it is done."""
    path = write_pdf("long.pdf", [[f"This is page {n} of the long report."] for n in range(1, 21)])
    events = list(add(library, [path]))
    assert events[0] == FileStarted(str(path), 1, 1)
    steps = [(event.done, event.total) for event in events if isinstance(event, PagesRead)]
    assert steps == [(0, 20), (8, 20), (16, 20), (20, 20)]
    result = events[-2].result
    assert (result.status, result.pages, result.pages_without_text, result.reason) == ("added", 20, 0, None)
    assert isinstance(events[-1], Summary)
    assert events[-1].counts == {"added": 1, "unchanged": 0, "replaced": 0, "partial": 0, "refused": 0}


def test_pages_without_text_are_named(library, write_pdf):
    """Scanned pages make a document partial, with the sentence a person reads."""
    pages = [["Page one has words."], ["Page two, too."], *[[]] * 7, ["Page ten, too."], [], ["The end of it."]]
    result = add_all(library, write_pdf("scan.pdf", pages))["scan.pdf"]
    assert (result.status, result.pages, result.pages_without_text, result.reason) == ("partial", 12, 8, "no_text")
    assert result.hint.startswith("No text found on pages 3–9 and 11. ")
    (document,) = library.documents()
    assert (document.state, document.reason, document.hint) == ("partial", "no_text", result.hint)
    assert [page.reason for page in library.pages(document.document_id)][2:9] == ["scanned"] * 7
    again = add_all(library, write_pdf("scan.pdf", pages))["scan.pdf"]
    assert (again.status, again.reason, again.pages_without_text) == ("unchanged", "no_text", 8)
    check_nothing_is_half(library)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([4], "page 4"),
        ([3, 4, 5, 9], "pages 3–5 and 9"),
        ([1, 3, 5], "pages 1, 3 and 5"),
        ([*range(1, 41, 2)], "pages 1, 3, 5, 7, 9, 11, 13 and 13 more"),
    ],
)
def test_page_numbers_are_written_as_people_do(numbers, words):
    """Ranges, and not a screen full of numbers."""
    assert ingest._page_list(numbers) == words


def test_files_that_cannot_be_added_say_why(library, files, write_pdf, tmp_path):
    """Each ends refused with a reason from the list and what to do; the others are added."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(PdfReader(files / "harbour report 2023.pdf"))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(files / "locked.pdf")
    write_pdf("scanned.pdf", [[], []], files)
    (files / "empty.txt").write_text("")
    (files / "blank.txt").write_text("  \n\n ")
    (files / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (files / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing of use\n%%EOF")
    (files / "fake.pdf").write_text("I am a text.")
    results = results_of(add(library, [files, tmp_path / "missing.pdf"]))
    refused = {name: result.reason for name, result in results.items() if result.status == "refused"}
    assert refused == {
        "locked.pdf": "encrypted",
        "scanned.pdf": "no_text",
        "empty.txt": "empty_file",
        "blank.txt": "no_text",
        "picture.png": "unsupported_type",
        "broken.pdf": "damaged",
        "fake.pdf": "wrong_type",
        "missing.pdf": "not_found",
    }
    assert all(results[name].hint for name in refused)
    assert all(results[name].document_id is None for name in refused)
    assert {name for name, result in results.items() if result.status == "added"} == {
        "beekeeping.md",
        "harbour report 2023.pdf",
        "recipes.txt",
    }
    check_nothing_is_half(library)


def test_a_locked_pdf_that_opens_without_a_password_is_read(library, files):
    """Only printing is forbidden there."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(PdfReader(files / "harbour report 2023.pdf"))
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(files / "open.pdf")
    assert add_all(library, files / "open.pdf")["open.pdf"].status == "added"


def test_a_limit_in_the_middle_keeps_what_was_read(config, write_pdf):
    """What came before the memory or the time ran out is there, and the rest is told."""
    import dataclasses

    config = dataclasses.replace(config, parse_cpu_seconds=0.2, parse_cpu_seconds_per_page=0.0)
    path = write_pdf(
        "huge.pdf", [[f"Line {line} of page {n} of the report." for line in range(45)] for n in range(300)]
    )
    library = Library(config)
    result = add_all(library, path)["huge.pdf"]
    assert result.reason == "time_limit"
    if result.status == "partial":  # on a slow machine not even the first page comes
        (document,) = library.documents()
        assert document.state == "partial"
        assert f"of {result.pages} pages" in document.hint
        assert {page.reason for page in library.pages(document.document_id)} >= {"not_reached"}
        check_nothing_is_half(library)


@pytest.mark.parametrize(
    ("name", "inside", "title"),
    [
        ("report_2023-final.pdf", "", "report 2023 final"),
        ("report.pdf", "Report", "report"),
        ("q1 sales.pdf", "Annual report", "q1 sales: Annual report"),
        ("184.txt", "", ""),
        ("184.txt", "Annual report", "Annual report"),
        ("annual.pdf", "0000764478-17-000008", "annual"),
        ("report.pdf", "Annual report 2023", "Annual report 2023"),
        (os.fsdecode(b"caf\xe9.pdf"), "", "caf\\udce9"),
    ],
)
def test_titles_are_the_name_in_words_and_what_the_document_says(name, inside, title):
    """Without saying anything twice."""
    assert title_of(Path(name), DocumentInfo("pdf", 1, inside)) == title


# Stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_leaves_no_half_document_and_no_process(library, write_pdf, files):
    """Closing the generator in the middle of the second file keeps the first and ends the reading process."""
    before = children()
    path = write_pdf("zz long.pdf", [[f"This is page {n}."] for n in range(1, 60)])
    events = add(library, [files / "recipes.txt", path])
    for event in events:
        if isinstance(event, PagesRead) and event.done and event.total == 59:
            break
    assert children() - before
    events.close()
    assert children() == before
    assert [document.name for document in library.documents()] == ["recipes.txt"]
    assert states_of_runs(library) == ["stopped"]
    check_nothing_is_half(library)
    assert not (library.config.home / "ingestion.holder").exists()
    assert {name: r.status for name, r in add_all(library, files / "recipes.txt", path).items()} == {
        "recipes.txt": "unchanged",
        "zz long.pdf": "added",
    }


def test_a_file_that_changes_while_it_is_read_is_refused(library, write_pdf):
    """Its hash would not be that of what was read."""
    path = write_pdf("moving.pdf", [[f"This is page {n}."] for n in range(1, 40)])
    statuses = []
    for event in add(library, [path]):
        if isinstance(event, PagesRead) and event.done == 8:
            write_pdf("moving.pdf", [["Now it is shorter."]])
        if isinstance(event, FileFinished):
            statuses.append((event.result.status, event.result.reason))
    assert statuses == [("refused", "changed_while_reading")]
    assert library.documents() == []


def test_a_missing_embedding_model_is_not_the_file_s_fault(library, files, tmp_path, monkeypatch):
    """It ends the whole, with the remedy; the run is closed."""
    monkeypatch.setenv("DOCMIND_EMBEDDING", str(tmp_path / "nothing"))
    with pytest.raises(BackendUnavailable, match="DOCMIND_EMBEDDING"):
        list(add(library, [files]))
    assert states_of_runs(library) == ["failed"]


# Another model ----------------------------------------------------------------------------------------------------


def test_another_embedding_model_is_noticed_and_reindex_mends_it(library, files):
    """Neither adding nor searching mixes vectors of two models; reindexing gives those of the one in use."""
    add_all(library, files / "recipes.txt", files / "beekeeping.md")
    expected = np.array(library.vector_index().vectors)
    other = EmbeddingIdentity("another-model", 384, np.roll(embed.identity().canary, 7))
    library.replace_vectors(
        ((int(i), np.roll(v, 7)) for i, v in zip(library.vector_index().passage_ids, expected, strict=True)), other
    )
    with pytest.raises(EmbeddingChanged, match="another-model"):
        library.search("lemon cake")
    with pytest.raises(EmbeddingChanged):
        add_all(library, files / "harbour report 2023.pdf")
    steps = list(ingest.reindex(library))
    assert steps[-1].done == steps[-1].total == library.counts()["passages"]
    vectors = library.vector_index().vectors
    assert (vectors * expected).sum(axis=1).min() > 0.99
    assert library.search("lemon cake")[0].document == "recipes.txt"
    assert add_all(library, files / "harbour report 2023.pdf")["harbour report 2023.pdf"].status == "added"


def test_reindexing_an_empty_library_is_nothing(library):
    """And does not tie it to a model."""
    assert list(ingest.reindex(library)) == []
    assert library.embedding_identity() is None


# One at a time ----------------------------------------------------------------------------------------------------


HOLDER = """
import sys, time
from docmind.ingest import FileStarted, add
from docmind.library import open_library
from pathlib import Path
events = add(open_library(), [Path(sys.argv[1])])
next(events)
print("holding", flush=True)
input()
print([type(event).__name__ for event in events][-1], flush=True)
"""


def test_a_second_process_waits_and_says_who_holds_it(library, files, in_child):
    """It is told once, and goes on when the first has ended; both files are there."""
    environment = in_child.environment | {"DOCMIND_HOME": str(library.config.home)}
    with subprocess.Popen(
        [in_child.python, "-c", HOLDER, str(files / "recipes.txt")],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == "holding\n"
        events = add(library, [files / "beekeeping.md"])
        waiting = next(events)
        assert isinstance(waiting, Waiting)
        assert f"process {child.pid} on " in waiting.holder
        child.stdin.write("\n")
        child.stdin.flush()
        assert [type(event) for event in events][-1] is Summary
        assert child.stdout.readline() == "Summary\n"
    assert {document.name for document in library.documents()} == {"recipes.txt", "beekeeping.md"}
    assert states_of_runs(library) == ["complete", "complete"]


def test_a_lock_goes_with_the_process_that_held_it(library, files, in_child):
    """After a kill nobody has to remove a file; the dead run is closed by the next."""
    environment = in_child.environment | {"DOCMIND_HOME": str(library.config.home)}
    with subprocess.Popen(
        [in_child.python, "-c", HOLDER, str(files / "recipes.txt")],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == "holding\n"
        child.kill()
    assert states_of_runs(library) == ["running"]
    assert add_all(library, files / "recipes.txt")["recipes.txt"].status == "added"
    assert states_of_runs(library) == ["failed", "complete"]


def test_a_run_of_a_younger_process_of_the_same_number_is_dead(library):
    """In a container every start has the same process number."""
    runs.start_run(library, "ingestion")
    runs.start_run(library, "ingestion")
    assert states_of_runs(library) == ["running", "running"]
    with store.writing(library.path) as db:
        db.execute("UPDATE runs SET started_at = '2001-01-01T00:00:00.000+00:00'")
    runs.start_run(library, "ingestion")
    assert sorted(states_of_runs(library)) == ["failed", "failed", "running"]


def test_two_threads_add_one_after_the_other(library, files):
    """The browser adds in the background of the same process."""
    errors = []

    def work(name):
        try:
            add_all(Library(library.config), files / name)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("recipes.txt", "beekeeping.md")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(library.documents()) == 2
    check_nothing_is_half(library)


# Kills ------------------------------------------------------------------------------------------------------------

DRIVER = """
import sys, numpy as np, hashlib
from pathlib import Path
from docmind.embed import EmbeddingIdentity
from docmind.library import NewPassage, open_library
from docmind.parse import DocumentInfo, ParsedPage
library = open_library()
identity = EmbeddingIdentity("made-up", 64, np.eye(64, dtype=np.float32)[0])
print("ready", flush=True)
for number in range(int(sys.argv[1]), 100000):
    pages = [ParsedPage(n, f"document {number} page {n} " + "some words " * 50, "text") for n in range(1, 13)]
    passages = [NewPassage(p.number, s, e, p.text[s:e], np.full(64, .125, np.float32))
                for p in pages for s, e in ((0, 100), (100, len(p.text)))]
    replaced = number % 3 == 2  # every third replaces the one before it
    path = Path(f"/documents/{number - replaced}.txt")
    document_id, was = library.insert_document(
        DocumentInfo("text", 12, ""), pages, passages, path=path,
        sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        title=f"{number}", size_bytes=1, state="ready", reason=None, hint="", collections=["c"], identity=identity)
    assert was == replaced
    print(number, document_id, flush=True)
"""


@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_that_was_acknowledged(library, in_child):
    """SIGKILL at random moments of writing: all that was printed is there, at most one more is, nothing is half."""
    moments = random.Random(20)
    environment = in_child.environment | {"DOCMIND_HOME": str(library.config.home)}
    acknowledged = {}  # path -> document id
    following = 0
    total = 0
    for _ in range(20):
        with subprocess.Popen(
            [in_child.python, "-c", DRIVER, str(following)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stdout.readline() == "ready\n", child.stderr.read()
            time.sleep(moments.uniform(0.0, 0.5))
            child.kill()
            for line in child.stdout.read().splitlines():
                number, document_id = line.split()
                following = int(number) + 1
                path = following - 1 - (int(number) % 3 == 2)
                acknowledged[f"{path}.txt"] = document_id
                total += 1
            assert "Error" not in child.stderr.read()
        reopened = Library(library.config)
        found = {document.name: document.document_id for document in reopened.documents()}
        # One more than acknowledged may be there: written, but the line was not.
        extra = hashlib.sha256(str(following).encode()).hexdigest()[:16]
        late = f"{following - (following % 3 == 2)}.txt"
        if found.get(late) == extra:
            acknowledged[late] = extra
            following += 1
        assert found == acknowledged
        assert len(reopened.documents()) == len(found)  # nothing doubled
    assert total > 20
    check_nothing_is_half(library)
    assert library.counts()["pages"] == 12 * len(acknowledged)
    assert library.counts()["passages"] == 24 * len(acknowledged)


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kills_of_docmind_add_keep_what_was_acknowledged(library, tmp_path, in_child):
    """The command itself, killed after it has reported some files; adding the folder again completes it."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02}.txt").write_text(f"Note {n}: the answer to question {n} is {n * n}. " * 3)
    moments = random.Random(3)
    environment = in_child.environment | {"DOCMIND_HOME": str(library.config.home)}
    acknowledged = {}
    for wanted in (0, 3, 8):
        with subprocess.Popen(
            [in_child.python, "-m", "docmind", "add", str(folder), "--json"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            lines = [child.stdout.readline() for _ in range(len(acknowledged) + 1 + wanted)]
            assert all(lines), child.stderr.read()
            time.sleep(moments.uniform(0.0, 0.4))
            workers = psutil.Process(child.pid).children(recursive=True)
            child.kill()
            for line in [*lines, *child.stdout.read().splitlines()]:
                row = json.loads(line)
                assert row["status"] in ("added", "unchanged")
                acknowledged[Path(row["path"]).name] = row["document_id"]
        wait_until(lambda those=workers: all(map(is_gone, those)), lambda: "a worker stayed")
        found = {document.name: document.document_id for document in Library(library.config).documents()}
        assert acknowledged.items() <= found.items()
        assert len(found) <= len(acknowledged) + 1
        acknowledged = found
        check_nothing_is_half(library)
    results = add_all(library, folder)
    assert {result.status for result in results.values()} == {"added", "unchanged"}
    assert len(library.documents()) == 30
    assert states_of_runs(library) == ["failed"] * 3 + ["complete"]
    check_nothing_is_half(library)


# A full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("needs root to mount a small file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "docmind-test", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("this root may not mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_added_before(small_disk, tmp_path):
    """The file that does not fit is refused with disk_full, the ones before it are whole; with room it goes on."""
    library = Library(Config(home=small_disk / "home"))
    folder = tmp_path / "many"
    folder.mkdir()
    words = random.Random(1)
    for n in range(5):
        text = "\f".join(" ".join(words.choices("quay boat net rope gull mast tide".split(), k=60)) for _ in range(12))
        (folder / f"{n}.txt").write_text(text)
    ballast = small_disk / "ballast"
    seen = []
    with pytest.raises(LibraryFull) as caught:  # noqa: PT012
        for event in add(library, [folder]):
            if isinstance(event, FileFinished):
                seen.append(event.result)
                if len(seen) == 1:  # from here on almost nothing fits
                    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    assert "safe" in caught.value.hint
    assert seen[0].status == "added"
    assert (seen[-1].status, seen[-1].reason) == ("refused", "disk_full")
    added = [result for result in seen if result.status == "added"]
    reopened = Library(library.config)
    assert len(reopened.documents()) == len(added)
    assert reopened.search("gull and mast")  # searching needs no room
    check_nothing_is_half(reopened)
    ballast.unlink()
    for file in sorted(folder.iterdir())[3:]:
        file.unlink()
    assert {result.status for result in add_all(reopened, folder).values()} == {"added", "unchanged"}
    assert len(reopened.documents()) == 3
    check_nothing_is_half(reopened)


def test_a_disk_that_was_full_from_the_start_is_said_to_be(small_disk, files):
    """Not a byte left, not even for the lock."""
    library = Library(Config(home=small_disk / "home"))
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    with pytest.raises(LibraryFull):
        list(add(library, [files]))
    (small_disk / "ballast").unlink()  # SQLite's shared memory needs 32 KiB even to read
    assert library.documents() == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_adding_keeps_the_files_before_it(library, tmp_path, in_child):
    """Exit status 130, the run is stopped, nothing half, no process left."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(300):
        (folder / f"{n:03}.txt").write_text(f"Note {n}. " * 50)
    environment = in_child.environment | {"DOCMIND_HOME": str(library.config.home)}
    with subprocess.Popen(
        # A shell's background job ignores Ctrl-C, and so would its children: a terminal's do not.
        [in_child.python, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
         "from docmind.cli import main; sys.exit(main())", "add", str(folder), "--json"],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        for _ in range(3):
            assert child.stdout.readline(), child.stderr.read()
        workers = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read().splitlines()
        error = child.stderr.read()
        assert child.wait(PATIENCE_SECONDS) == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not any(worker.is_running() for worker in workers)
    assert 3 <= len(library.documents()) <= 3 + len(rest) + 1
    assert states_of_runs(library) == ["stopped"]
    check_nothing_is_half(library)


def test_a_file_whose_reading_crashed_is_read_again(library, files):
    """The hint of worker_crashed is to add it once more: then the same bytes take the place of the earlier reading."""
    first = add_all(library, files / "recipes.txt", collections=["kitchen"])["recipes.txt"]
    with store.writing(library.path) as db:
        db.execute("UPDATE documents SET state = 'partial', reason = 'worker_crashed'")
    again = add_all(library, files / "recipes.txt")["recipes.txt"]
    assert (again.status, again.document_id, again.passages) == ("replaced", first.document_id, first.passages)
    (document,) = library.documents()
    assert (document.state, document.reason, document.collections) == ("ready", None, ("kitchen",))
    check_nothing_is_half(library)
