"""The Documents page in each of its states, drawn by Streamlit's own test runner on a real library."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
import streamlit as st
from filelock import FileLock
from pypdf import PdfReader, PdfWriter
from servers import ollama
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS, wait_until

from docmind import runs
from docmind.library import Library
from docmind.sample import sample_path
from docmind.settings import Settings, save_settings

REPOSITORY = Path(__file__).parents[2]
POISON = "![x](x.png) $a$ :smile: :red[r] <img src=x> [y](z).txt"  # all that a file's name can hold
ALIVE = re.compile(r"(?<!\\)(!\[|<img|\$a|:smile:|:red\[|\[y)")  # a character that no backslash disarms


@pytest.fixture
def open_page(config, monkeypatch):
    """Opens the page on this test's library, as a new visitor of a new server; `.run()` it again for another look."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.setenv("DOCMIND_HOME", str(config.home))
    monkeypatch.setattr(runs, "_runs", {})  # those of other tests
    st.cache_resource.clear()

    def start():
        return AppTest.from_file(str(REPOSITORY / "pages" / "documents.py"), default_timeout=PATIENCE_SECONDS).run()

    yield start
    runs.stop_all(PATIENCE_SECONDS)
    st.cache_resource.clear()


def words(page):
    """Everything the page says, but for the table."""
    assert not page.exception, page.exception
    kinds = ("title", "subheader", "markdown", "caption", "text", "info", "warning", "error", "success", "toast")
    return "\n".join(element.value for kind in kinds for element in page.get(kind))


def table(page):
    """The table of documents as a list of dictionaries."""
    return next(frame.value for frame in page.dataframe if "Status" in frame.value).to_dict("records")


def button(page, label):
    """The one button of that label."""
    (found,) = [element for element in page.button if element.label == label]
    return found


def select(page, *rows):
    """Tick rows of the table, counted from 0."""
    key = f"documents_{page.session_state['table_round']}"
    page.session_state[key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
    return page.run()


def upload(page, *files):
    """Drop files of (name, bytes)."""
    return page.file_uploader[0].set_value([(name, data, "application/octet-stream") for name, data in files]).run()


def finish(page):
    """Wait for all that is being added, and look again."""
    for run in runs.live("ingestion"):
        assert run.wait(PATIENCE_SECONDS)
    return page.run()


def mark_partial(library, document_id, hint="No text found on page 2. Run text recognition and add the result."):
    """As ingestion leaves a document whose second page is only a picture."""
    with sqlite3.connect(library.path) as db:
        values = (hint, document_id)
        db.execute("UPDATE documents SET state = 'partial', reason = 'no_text', hint = ? WHERE id = ?", values)
    db.close()


# Empty, error and full --------------------------------------------------------------------------------------------


def test_an_empty_library_says_what_to_do(open_page):
    """A drop area, a path, a sample; no table, and nothing that does nothing."""
    page = open_page()
    assert "No documents yet" in words(page)
    assert page.file_uploader[0].label == "Drop files here or browse"
    assert button(page, "Try with a sample")
    assert not page.dataframe
    assert not page.get("progress")


def test_the_sample_can_be_tried(open_page, config):
    """It becomes a document of three readable pages, kept below the data folder."""
    page = open_page()
    finish(button(page, "Try with a sample").click().run())
    (row,) = table(page)
    assert (row["Name"], row["Pages"], row["Read"], row["Status"]) == (sample_path().name, 3, 100, "ready")
    assert "1 added" in words(page)
    (document,) = Library(config).documents()
    assert Path(document.path).is_relative_to(config.home / "documents")
    assert not [element for element in page.button if element.label == "Try with a sample"]


def test_a_damaged_library_is_said_with_a_remedy(open_page, config, library):
    """Instead of a page, and with no more than that."""
    config.database.write_bytes(b"no database at all" * 1000)
    page = open_page()
    assert "damaged" in words(page)
    assert "backup" in words(page)
    assert not page.file_uploader


def test_a_library_of_a_newer_docmind_is_left_alone(open_page, config, library):
    """The page says so and writes nothing."""
    with sqlite3.connect(config.database) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    page = open_page()
    assert "newer DocMind" in words(page)
    assert not page.file_uploader


def test_an_upload_that_cannot_be_kept_says_why_and_leaves_nothing(open_page, config, library):
    """A file stands where the folder of kept copies belongs; the widget is empty again and nothing is added."""
    (config.home / "documents").write_text("in the way")
    page = upload(open_page(), ("note.txt", b"A note."))
    assert "could not be kept" in words(page)
    assert runs.live() == []
    assert page.file_uploader[0].value == []
    (config.home / "documents").unlink()
    page = finish(upload(page, ("note.txt", b"A note.")))
    assert "could not be kept" not in words(page)
    assert [row["Name"] for row in table(page)] == ["note.txt"]


# Bringing documents in --------------------------------------------------------------------------------------------


def test_uploaded_files_are_read_at_once_and_their_memory_is_freed(open_page, config, files):
    """Two at once: both are documents, the drop area is empty again, and the server holds no bytes of them."""
    page = open_page()
    dropped = [(path.name, path.read_bytes()) for path in sorted(files.iterdir())[:2]]
    upload(page, *dropped)
    assert page.file_uploader[0].value == []
    assert len(runs.live("ingestion")) == 1
    finish(page)
    assert sorted(row["Name"] for row in table(page)) == sorted(name for name, _ in dropped)
    assert "2 added" in words(page)
    kept = sorted(path.name for path in (config.home / "documents").rglob("*") if path.is_file())
    assert kept == sorted(name for name, _ in dropped)


def test_each_file_that_needs_attention_has_a_line_with_what_to_do(open_page, config, write_pdf, tmp_path):
    """Refused and partly read; the line stays until it is dismissed, and refused copies are gone."""
    plain = write_pdf("plain.pdf", [["The harbour of Ellmere."]])
    locked = tmp_path / "locked.pdf"
    writer = PdfWriter(clone_from=PdfReader(plain))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(locked)
    scan = write_pdf("scan.pdf", [["The harbour of Ellmere handled 48,200 containers."], []])
    page = open_page()
    fake = ("fake.pdf", b"\x89PNG\r\n\x1a\n")
    upload(page, ("locked.pdf", locked.read_bytes()), ("scan.pdf", scan.read_bytes()), fake)
    finish(page)
    said = words(page)
    assert "1 read in part · 2 not added" in said
    assert "locked.pdf is locked with a password" in said
    assert "qpdf" in said
    assert "fake.pdf is named PDF but is a PNG picture" in said
    assert "No text found on page 2" in said
    assert [row["Status"] for row in table(page)] == ["partial: no text found on page 2"]
    assert [row["Read"] for row in table(page)] == [50]
    assert "1 document · 2 pages · all readable but 1 page" in said
    page.run()
    assert "locked with a password" in words(page)
    button(page, "Dismiss").click().run()
    assert "locked with a password" not in words(page)


def test_a_folder_full_of_other_files_is_told_in_one_line(open_page, files):
    """Pictures are not listed one by one; the names are there for who wants them."""
    for number in range(9):
        (files / f"IMG_{number}.jpg").write_bytes(b"\xff\xd8\xff")
    page = open_page()
    add_path(page, str(files))
    finish(page)
    assert "3 added · 9 not added" in words(page)
    assert [expander.label for expander in page.expander] == ["9 files of other kinds"]
    assert "IMG_3" not in words(page)
    assert "IMG_3.jpg" in list(page.expander[0].dataframe[0].value["File"])


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://127.0.0.1:9", "on this device"), ("https://api.example.com/v1", "to api.example.com on the internet")],
)
def test_a_search_model_of_a_backend_is_said_with_where_text_goes(open_page, config, url, said):
    """Nothing is said of the one that comes with DocMind, and nothing is promised that is not so."""
    assert "Search model" not in words(open_page())
    assert "stay on it" in words(open_page())
    save_settings(config, Settings(embedding="ollama:x_y", embedding_options={"url": url}))
    page = open_page()
    assert f"Search model: ollama:x_y · {'on this device' if 'this' in said else 'the text of all documents is'}" in (
        words(page).replace("\\", "")
    )
    assert said in words(page).replace("\\", "")
    assert ("stay on it" in words(page)) == ("this device" in said)


def test_a_file_whose_vectors_cannot_be_made_is_said_with_the_way_out(open_page, config, files):
    """Its line and the error; nothing of it is kept."""
    with ollama.serve() as gone:
        save_settings(config, Settings(embedding="ollama:nomic-embed-text", embedding_options={"url": gone.url}))
    page = open_page()
    add_path(page, str(files))
    finish(page)
    assert "docmind settings embedding default" in words(page)
    assert "1 not added" in words(page)
    assert re.search(r":red-badge\[not added\] \S*beekeeping\S* has no vectors", words(page))
    assert Library(config).documents() == []


def add_path(page, path, collection=""):
    """Fill in the form and send it."""
    page.text_input(key="path").set_value(path)
    page.text_input(key="path_collection").set_value(collection)
    return button(page, "Add").click().run()


def test_a_folder_is_added_by_its_path_and_filed(open_page, config, files):
    """The files stay where they are; quotes, as Windows copies a path, are taken off."""
    page = open_page()
    add_path(page, f'"{files}"', "farm $1$")
    finish(page)
    assert len(table(page)) == 3
    assert {row["Collections"] for row in table(page)} == {"farm $1$"}
    assert len(list(files.iterdir())) == 3
    assert not (config.home / "documents").exists()


@pytest.mark.parametrize("path", ["", "relative/folder", "a\0b", "~nobody-of-this-name/x"], ids=repr)
def test_half_a_path_is_not_guessed(open_page, path):
    """It would lead somewhere below the folder the server was started in."""
    page = add_path(open_page(), path)
    assert "whole path" in words(page)
    assert runs.live() == []


def test_a_path_that_leads_nowhere_is_told_as_such(open_page, tmp_path):
    """By the run itself: a dead network drive must not hold the page."""
    page = finish(add_path(open_page(), str(tmp_path / "no such.pdf")))
    assert "is not there" in words(page)


def test_a_folder_without_files_is_told_as_such(open_page, tmp_path):
    """Not as a success with a time."""
    (tmp_path / "hollow").mkdir()
    page = finish(add_path(open_page(), str(tmp_path / "hollow")))
    assert "No files were found there" in words(page)


# While documents are added ----------------------------------------------------------------------------------------


def progress_text(page):
    """The words on the bar of the only run, and how full it is."""
    (bar,) = page.get("progress")
    return bar.proto.text, bar.proto.value


def look_until(page, condition):
    """Look again and again, as the fragment does in a browser."""
    wait_until(lambda: condition(page) or condition(page.run()))
    return page


def test_waiting_for_another_program_is_said_and_can_be_given_up(open_page, config, library):
    """Another process holds the lock; the upload that was given up leaves no copy."""
    with FileLock(config.home / "ingestion.lock"):
        page = upload(open_page(), ("note.txt", b"A note about herring."))
        look_until(page, lambda page: "another DocMind is adding documents" in progress_text(page)[0])
        button(page, "Cancel").click().run()
        assert progress_text(page)[0].startswith("Stopping")
        assert button(page, "Cancel").disabled
    finish(page)
    assert "Stopped · nothing was added" in words(page)
    assert not [path for path in (config.home / "documents").rglob("*") if path.is_file()]


def test_pages_and_files_are_counted_while_they_are_read(open_page, config, write_pdf, tmp_path):
    """File, page, a bar that grows; a cancel keeps what was finished."""
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.txt").write_text("A short note about herring.")
    line = "The harbour of Ellmere handled many containers, as it did in every year before this one. " * 2
    write_pdf("b $1$.pdf", [[f"Page {n}."] + [line[:90]] * 40 for n in range(300)], folder)
    page = add_path(open_page(), str(folder))
    look_until(page, lambda page: "of 300" in progress_text(page)[0])
    text, full = progress_text(page)
    assert text.startswith("**b \\$1\\$.pdf** · file 2 of 2 · reading page ")
    assert full >= 50
    look_until(page, lambda page: progress_text(page)[1] > full)
    button(page, "Cancel").click().run()
    finish(page)
    assert "Stopped · 1 added" in words(page)
    assert [row["Name"] for row in table(page)] == ["a.txt"]


def test_a_run_that_another_visitor_began_is_seen_here_too(open_page, config, library):
    """And what went well before one came is not told."""
    with FileLock(config.home / "ingestion.lock"):
        upload(open_page(), ("note.txt", b"A note."))
        second = open_page()
        assert len(second.get("progress")) == 1
    finish(second)
    assert "1 added" in words(second)
    assert "1 added" not in words(open_page())


def test_the_time_left_is_told_only_when_it_is_known(monkeypatch):
    """Not from one look, not from a moment, and not when the next pages are long overdue."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from pages.parts.progress import Progress

    progress = Progress(runs.Run("ingestion"), pages=100, done=20)
    assert progress.seconds_left(10.0) is None
    progress.observations = [(10.0, 10), (11.0, 20)]
    assert progress.seconds_left(11.0) is None
    progress.observations = [(10.0, 10), (14.0, 20)]  # ten pages in four seconds, eighty to go
    assert progress.seconds_left(14.0) == pytest.approx(32)
    assert progress.seconds_left(17.0) == pytest.approx(29)
    assert progress.seconds_left(60.0) is None


# The table --------------------------------------------------------------------------------------------------------


def test_the_table_says_how_much_was_read_and_the_newest_is_first(open_page, library, insert):
    """A blank page is read; a page without text is not."""
    insert(library, "all.txt", ("One.", "Two."), collections=["b", "a"])
    some = insert(library, "some.pdf", ("One.", "", "Three."))
    mark_partial(library, some)
    with sqlite3.connect(library.path) as db:
        db.execute("UPDATE documents SET added_at = '2020-01-01T00:00:00.000+00:00' WHERE id <> ?", (some,))
    db.close()
    page = open_page()
    newest, oldest = table(page)
    assert (newest["Name"], newest["Read"], newest["Status"]) == ("some.pdf", 66, "partial: no text found on page 2")
    assert (oldest["Name"], oldest["Read"], oldest["Status"]) == ("all.txt", 100, "ready")
    assert oldest["Collections"] == "a, b"
    assert "2 documents · 5 pages · all readable but 1 page" in words(page)


def test_the_filter_looks_at_names_collections_and_status(open_page, library, insert):
    """All words must be there, in any case; nothing found is said."""
    insert(library, "Harbour report.txt", ("One.",), collections=["Sea"])
    mark_partial(library, insert(library, "bees.txt", ("Two.",), collections=["farm"]))
    page = open_page()
    for text, expected in [("report harb", 1), ("SEA", 1), ("partial", 1), ("farm sea", 0), ("", 2)]:
        page.text_input(key="documents_filter").set_value(text).run()
        if expected:
            assert len(table(page)) == expected, text
        else:
            assert "No document matches" in words(page)
            assert not page.dataframe


def test_a_selection_follows_its_document_when_the_list_changes(open_page, library, insert):
    """Rows are numbers: a document that comes in above must not take the place of the selected one."""
    insert(library, "old.txt", ("One.",))
    page = select(open_page(), 0)
    assert [element.value for element in page.subheader] == ["old.txt"]
    insert(library, "new.txt", ("Two.",))
    page.run()
    assert [row["Name"] for row in table(page)] == ["new.txt", "old.txt"]
    assert [element.value for element in page.subheader] == ["old.txt"]
    page.text_input(key="documents_filter").set_value("new").run()
    assert not page.subheader  # what is not shown is not selected
    assert button(page, "Remove…").disabled


def test_nothing_can_be_done_to_nothing(open_page, library, insert):
    """The buttons are there, and wait."""
    insert(library)
    page = open_page()
    assert button(page, "Remove…").disabled
    assert "Select one document" in words(page)


def test_five_thousand_documents_are_one_table(open_page, library, insert):
    """Every row is there and can be filtered."""
    first = insert(library, "report 0.txt", ("One.",))
    with sqlite3.connect(library.path) as db:
        for number in range(1, 5000):
            db.execute(
                "INSERT INTO documents SELECT ?, ?, ?, title, kind, size_bytes, page_count, outline, state, reason,"
                " hint, added_at FROM documents WHERE id = ?",
                (f"{number:016x}", f"{number:064x}", f"report {number}.txt", first),
            )
    db.close()
    page = open_page()
    assert len(table(page)) == 5000
    assert "5,000 documents" in words(page)
    page.text_input(key="documents_filter").set_value("report 4999").run()
    assert [row["Name"] for row in table(page)] == ["report 4999.txt"]


# Removing and filing ----------------------------------------------------------------------------------------------


def test_removing_asks_first_and_says_what_is_lost(open_page, library, insert):
    """Keep keeps; Remove removes exactly the selected ones."""
    for name in ("a.txt", "b.txt", "c.txt"):
        insert(library, name, (f"{name} one.", "Two."))
    page = select(open_page(), 0, 2)
    button(page, "Remove…").click().run()
    said = words(page)
    assert "Remove **c.txt**, **a.txt** from the library?" in said
    assert "4 pages" in said
    assert "Your own files stay where they are" in said
    button(page, "Keep").click().run()
    assert "from the library?" not in words(page)
    assert len(library.documents()) == 3
    button(page, "Remove…").click().run()
    button(page, "Remove").click().run()
    assert [row["Name"] for row in table(page)] == ["b.txt"]
    assert [document.name for document in library.documents()] == ["b.txt"]
    assert "from the library?" not in words(page)
    assert button(page, "Remove…").disabled


def test_another_selection_takes_the_question_back(open_page, library, insert):
    """What was confirmed is what was asked about."""
    insert(library, "a.txt"), insert(library, "b.txt", ("Two.",))
    page = select(open_page(), 0)
    button(page, "Remove…").click().run()
    select(page, 0, 1)
    assert "from the library?" not in words(page)
    assert len(library.documents()) == 2


def test_removing_an_upload_says_that_the_copy_goes(open_page, config):
    """And it does."""
    page = finish(upload(open_page(), ("note.txt", b"A note about herring.")))
    select(page, 0)
    button(page, "Remove…").click().run()
    assert "only the copy made of what you uploaded goes" in words(page)
    button(page, "Remove").click().run()
    assert "No documents yet" in words(page)
    assert not [path for path in (config.home / "documents").rglob("*") if path.is_file()]


def test_selected_documents_are_filed_and_taken_out(open_page, library, insert):
    """Both, and the third is left alone."""
    insert(library, "c.txt", ("Three.",), collections=["farm"])
    insert(library, "a.txt"), insert(library, "b.txt", ("Two.",))
    page = select(open_page(), 0, 1)
    page.selectbox(key="collection_to_add").set_value("farm")
    button(page, "File").click().run()
    assert [row["Collections"] for row in table(page)] == ["farm", "farm", "farm"]
    page.selectbox(key="collection_to_remove").set_value("farm")
    button(page, "Take out").click().run()
    assert [row["Collections"] for row in table(page)] == ["", "", "farm"]
    assert library.collections() == ["farm"]


# The X-ray --------------------------------------------------------------------------------------------------------


def test_one_selected_document_shows_how_each_page_was_read(open_page, library, insert):
    """It begins at the first page that could not be read, and another can be chosen."""
    mark_partial(library, insert(library, "some.txt", ("The first page.", "", "The third page.")))
    page = select(open_page(), 0)
    assert page.number_input[0].value == 2
    assert "has no text" in words(page)
    assert "ocrmypdf" in words(page)
    page.number_input[0].set_value(3).run()
    assert [element.value for element in page.text] == ["The third page."]


def test_a_page_that_was_changed_on_the_disk_is_said_to_be(open_page, library, insert):
    """The text is not shown as if it were the document's."""
    insert(library, "a.txt", ("The first page.",))
    with sqlite3.connect(library.path) as db:
        db.execute("UPDATE pages SET text = 'Forged.'")
    db.close()
    page = select(open_page(), 0)
    assert "was changed on the disk" in words(page)
    assert "Forged" not in words(page)


def test_the_text_of_a_page_is_shown_and_never_interpreted(open_page, library, insert):
    """As plain text: no markdown, no HTML."""
    insert(library, "a.txt", (f"# {POISON}",))
    page = select(open_page(), 0)
    assert [element.value for element in page.text] == [f"# {POISON}"]
    assert "http://127" not in "\n".join(element.value for element in page.markdown)


# Strangers' names -------------------------------------------------------------------------------------------------


def test_a_poisoned_name_is_inert_wherever_it_is_shown(open_page, library, insert):
    """In the heading, the confirmation and the toast it is escaped; cells of the table are no markdown."""
    insert(library, POISON)
    page = select(open_page(), 0)
    button(page, "Remove…").click().run()
    assert table(page)[0]["Name"] == POISON
    for kind in ("subheader", "markdown", "caption", "info", "warning", "error"):
        for element in page.get(kind):
            assert not ALIVE.search(element.value), element.value
    assert words(page).count("img src") == 2


def test_a_poisoned_name_is_inert_when_it_is_refused(open_page, tmp_path):
    """In the line that says why."""
    name = POISON.replace(".txt", ".jpg")
    (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    page = finish(add_path(open_page(), str(tmp_path / name)))
    (line,) = [element.value for element in page.markdown if "not added]" in element.value]
    assert "img src" in line
    assert not ALIVE.search(line)
