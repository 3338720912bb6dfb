"""The Documents page in a real browser: files are dropped, read, stopped, looked at and removed without a reload."""

from __future__ import annotations

import re

import pytest
from filelock import FileLock
from waiting import wait_until_in_page

from docmind.library import Library

POISON = "![x](http://127.0.0.1:9/x.png) $a$ :material/home: <img src=x>.txt"
LINE = "The harbour of Ellmere handled more containers than in any year before, said the director of the port."


@pytest.fixture
def documents(app_server, page):
    """The page of a new server, open in a browser."""
    served = app_server()
    page.goto(f"{served.url}/documents")
    page.get_by_text("No documents yet").wait_for()
    return page


def drop(page, *files):
    """Choose files in the drop area."""
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id("stFileUploaderDropzone").get_by_text("Upload", exact=True).click()
    chooser.value.set_files(list(files))


def cell(page, text):
    """A cell of the table; what the browser tells a screen reader, for the table is a picture."""
    return page.get_by_test_id("stDataFrame").first.locator("td", has_text=text)


def tick(page, row):
    """Click the box of a row of the table, counted from 0."""
    box = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(box["x"] + 17, box["y"] + 35 * (row + 1) + 17)


def test_a_dropped_pdf_becomes_ready_without_a_reload_and_can_be_looked_at(documents, write_pdf, config):
    """Uploaded, read, listed; its page that could not be read is marked, and another is a click away."""
    page = documents
    page.evaluate("window.wasNotReloaded = true")
    drop(page, write_pdf("harbour.pdf", [["The harbour of Ellmere."], [], ["The pilot station employs 26 people."]]))
    page.get_by_text("1 read in part").wait_for()
    page.get_by_text("1 document · 3 pages · all readable but 1 page").wait_for()
    cell(page, "partial: no text found on page 2").wait_for(state="attached")
    assert page.get_by_test_id("stFileUploaderFile").count() == 0  # the drop area is empty again
    tick(page, 0)
    page.get_by_role("button", name="Page 2: scanned, no text").wait_for()
    assert page.get_by_role("button", name="Page 2:").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Page 3: with text").click()
    page.get_by_text("The pilot station employs 26 people.").wait_for()
    wait_until_in_page(page, "document.querySelector('[data-testid=stNumberInputField]')?.value === '3'")
    assert page.evaluate("window.wasNotReloaded")
    (document,) = Library(config).documents()
    assert document.state == "partial"


def test_the_server_keeps_no_upload_in_memory(app_server, page, config, tmp_path):
    """Two megabytes go through it, and its own figures say that nothing is held; the file waits to be read."""
    served = app_server()
    page.goto(f"{served.url}/documents")
    page.get_by_text("No documents yet").wait_for()
    (tmp_path / "large.txt").write_text((LINE + "\n") * 20_000)
    with FileLock(config.home / "ingestion.lock"):
        drop(page, tmp_path / "large.txt")
        page.get_by_text("another DocMind is adding documents").wait_for()
        figures = served.request("/_stcore/metrics").text
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Stopping").wait_for()
    page.get_by_text("Stopped").wait_for()
    held = re.findall(r'^cache_memory_bytes\{cache_type="UploadedFileManager".*\} (\d+)', figures, re.MULTILINE)
    assert not sum(map(int, held)), figures


def test_a_long_pdf_can_be_stopped_and_leaves_nothing(documents, write_pdf, config):
    """300 pages: the bar says which page is read, Cancel ends it, and no copy stays."""
    page = documents
    drop(page, write_pdf("long.pdf", [[f"Page {n}."] + [LINE] * 40 for n in range(300)]))
    page.get_by_text(re.compile(r"reading page \d+ of 300")).wait_for()
    page.get_by_text(re.compile(r"reading page (9|[1-9]\d+) of 300")).wait_for()  # a batch is done: it moves
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Stopped · nothing was added").wait_for()
    page.get_by_text("No documents yet").wait_for()
    assert Library(config).documents() == []
    assert not [path for path in (config.home / "documents").rglob("*") if path.is_file()]


def test_a_poisoned_name_reaches_nobody(app_server, sink, asked_of_others):
    """Uploaded, waiting, listed, looked at and removed: no host but the app's is asked for anything."""
    served = app_server()
    page, proxy = sink()
    page.goto(f"{served.url}/documents")
    page.get_by_text("No documents yet").wait_for()
    drop(page, {"name": POISON, "mimeType": "text/plain", "buffer": b"The gulls of Ellmere."})
    page.get_by_text("1 added").wait_for()
    cell(page, "img src=x").wait_for(state="attached")
    tick(page, 0)
    page.get_by_role("heading", name="img src=x").wait_for()
    page.get_by_role("button", name="Remove…").click()
    page.get_by_text("from the library?").wait_for()
    assert page.locator("img[src='x'], img[src*='x.png'], .katex").count() == 0
    assert not proxy.hosts
    assert asked_of_others(page, served.url) == []


def test_documents_are_filed_and_removed(app_server, page, stocked):
    """Two of three: under a new name first, then out of the library, while the files stay."""
    served = app_server()
    page.goto(f"{served.url}/documents")
    page.get_by_text("3 documents").wait_for()
    cell(page, "ready").first.wait_for(state="attached")
    tick(page, 0)
    page.get_by_role("heading", name="recipes").wait_for()
    tick(page, 1)
    page.get_by_role("heading", name="recipes").wait_for(state="detached")
    page.get_by_role("button", name="Collections").click()
    page.get_by_role("combobox", name="File under").fill("farm & sea")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="File", exact=True).click()
    cell(page, "all, farm & sea").nth(1).wait_for(state="attached")
    assert sorted(map(len, (document.collections for document in stocked.documents()))) == [1, 2, 2]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove…").click()
    page.get_by_text("Your own files stay where they are").wait_for()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_text("1 document ·").wait_for()
    (left,) = stocked.documents()
    assert left.collections == ("all",)


def test_another_tab_sees_what_is_being_added(app_server, page, config, tmp_path):
    """It waits for another program, in both tabs; then both show the document, neither reloaded."""
    served = app_server()
    first, second = page, page.context.new_page()
    (tmp_path / "note.txt").write_text(LINE)
    for tab in (first, second):
        tab.goto(f"{served.url}/documents")
        tab.get_by_text("No documents yet").wait_for()
    with FileLock(config.home / "ingestion.lock"):
        drop(first, tmp_path / "note.txt")
        for tab in (first, second):
            tab.get_by_text("another DocMind is adding documents").wait_for()
    for tab in (first, second):
        tab.get_by_text("1 document · 1 page · all readable").wait_for()
