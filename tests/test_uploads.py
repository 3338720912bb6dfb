"""Bytes from a browser become files, and nothing of them stays that is not a document."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader

from docmind.config import Config
from docmind.errors import LibraryError, LibraryFull
from docmind.ingest import FileFinished, add
from docmind.library import Library
from docmind.sample import sample_path
from docmind.uploads import ABANDONED_SECONDS, forget_upload, keep_upload, safe_name, settling, sweep_uploads


def kept_files(config):
    """All files below the folder of kept copies."""
    return sorted(path for path in (config.home / "documents").rglob("*") if path.is_file())


def make_old(config):
    """As if everything that was kept had been kept long ago."""
    root = config.home / "documents"
    for path in [root, *root.rglob("*")]:
        os.utime(path, (time.time() - ABANDONED_SECONDS - 60,) * 2)


def add_all(library, paths):
    """The results of adding files."""
    return [event.result for event in add(library, paths) if isinstance(event, FileFinished)]


def in_another_process(config, code, in_child):
    """Run some code on the same data folder, as if DocMind had been started a second time."""
    environment = in_child.environment | {"DOCMIND_HOME": str(config.home)}
    subprocess.run([in_child.python, "-c", code], env=environment, check=True, timeout=120)


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("Annual report 2023.pdf", "Annual report 2023.pdf"),
        ("Übersicht — 第三章.md", "Übersicht — 第三章.md"),
        ("U\u0308bersicht.md", "Übersicht.md"),  # as macOS writes it
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\report.pdf", "report.pdf"),
        ("..", "document"),
        ("", "document"),
        ("  ", "document"),
        (".pdf", "document.pdf"),
        (".hidden.txt", "hidden.txt"),
        ("...txt", "document.txt"),
        ("folder/", "document"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("com1.report.pdf", "_com1.report.pdf"),
        ("Lpt².pdf", "_Lpt².pdf"),
        ("console.txt", "console.txt"),
        ("what is this?.pdf", "what is this_.pdf"),
        ("a\x00b\x1bc\r\nd.txt", "abc d.txt"),
        ("invoice\u202efdp.txt", "invoicefdp.txt"),
        ("dots....", "dots"),
        ("blank .pdf ", "blank.pdf"),
        ("no extension", "no extension"),
        ("caf\udce9.pdf", "caf_.pdf"),
        ("week.of the long sentence after a dot", "week.of the long sentence after a dot"),
    ],
)
def test_a_name_becomes_one_that_every_system_takes(given_name, expected):
    """Recognisable, with its extension, and never a way out of the folder."""
    assert safe_name(given_name) == expected


def test_a_long_name_is_cut_between_letters_and_keeps_its_extension():
    """The limit counts bytes; 255 is what file systems take, 143 what encrypted home folders take."""
    name = safe_name("文" * 300 + ".pdf")
    assert len(name.encode()) <= 143
    assert name.strip("文") == ".pdf"
    assert len(safe_name("x." + "y" * 400).encode()) <= 143


@given(st.text(st.characters(exclude_categories=()), max_size=400))
def test_no_name_leaves_the_folder_or_is_refused_by_the_system(name):
    """Whatever a browser sends."""
    safe = safe_name(name)
    assert safe.strip(". ")
    assert safe == os.path.basename(safe)  # noqa: PTH119 - the meaning of "no way out"
    assert 0 < len(safe.encode()) <= 143
    assert not set(safe) & set('<>:"/\\|?*')
    assert all(ord(c) >= 32 for c in safe)
    assert safe[-1] not in ". "
    assert safe_name(safe) == safe


# Keeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_a_kept_file_is_private_and_nothing_lies_beside_it(library, config):
    """0700 and 0600; the temporary file is gone."""
    path = keep_upload(config, "note.txt", b"A note.")
    assert path.read_bytes() == b"A note."
    assert path.name == "note.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700
    assert list((config.home / "documents").iterdir()) == [path.parent]


def test_a_stream_is_kept_like_bytes(library, config):
    """In blocks: a large file is never in memory at once."""
    data = os.urandom(3 << 20)
    path = keep_upload(config, "large.pdf", io.BytesIO(data))
    assert path.read_bytes() == data
    assert keep_upload(config, "again.pdf", data) == path


def test_the_same_bytes_give_the_same_path_under_any_name(library, config):
    """One copy, under the name it had first."""
    first = keep_upload(config, "first.txt", b"Same.")
    assert keep_upload(config, "second.txt", io.BytesIO(b"Same.")) == first
    assert keep_upload(config, "first.txt", b"Other.") != first
    assert len(kept_files(config)) == 2


def test_a_copy_that_was_damaged_is_written_again(library, config):
    """After a power cut it may be empty."""
    path = keep_upload(config, "a.txt", b"All of it.")
    path.write_bytes(b"")
    assert keep_upload(config, "a.txt", b"All of it.") == path
    assert path.read_bytes() == b"All of it."


def test_many_threads_keep_the_same_bytes_once(library, config):
    """Two pages may bring the same file at the same moment."""
    paths = []
    threads = [
        threading.Thread(target=lambda n=n: paths.append(keep_upload(config, f"{n}.txt", b"Same." * 1000)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(kept_files(config)) == 1


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_is_said_and_nothing_half_is_left(tmp_path):
    """A real file system of 2 MB; what was kept before is still there."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "docmind-test", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        config = Config(home=disk / "home")
        Library(config)
        kept = keep_upload(config, "small.txt", b"A small file.")
        before = shutil.disk_usage(disk).free
        with pytest.raises(LibraryFull) as caught:
            keep_upload(config, "large.pdf", bytes(4 << 20))
        assert caught.value.reason == "disk_full"
        assert "Free some space" in caught.value.hint
        assert kept_files(config) == [kept]
        assert shutil.disk_usage(disk).free == before
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):  # noqa: PT012
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(LibraryFull):  # no room for a folder either
            keep_upload(config, "another.txt", b"Another file." * 1000)
        (disk / "ballast").unlink()
        assert kept_files(config) == [kept]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_to_is_said_with_a_remedy(config, library):
    """A file stands where the folder belongs."""
    (config.home / "documents").write_text("in the way")
    with pytest.raises(LibraryError) as caught:
        keep_upload(config, "a.txt", b"A.")
    assert not isinstance(caught.value, LibraryFull)
    assert "DOCMIND_HOME" in caught.value.hint


# Forgetting -------------------------------------------------------------------------------------------------------


def test_a_copy_that_became_no_document_is_forgotten_with_its_folder(library, config):
    """And saying so twice changes nothing."""
    path = keep_upload(config, "a.pdf", b"no PDF at all")
    assert forget_upload(library, path)
    assert list((config.home / "documents").iterdir()) == []
    assert not forget_upload(library, path)


def test_a_copy_that_became_a_document_stays(stocked, config, files):
    """Also when the same bytes are uploaded again and nothing changes."""
    (document,) = [d for d in stocked.documents() if d.kind == "pdf"]
    path = keep_upload(config, "again.pdf", (files / document.name).read_bytes())
    assert path.parent.name == document.document_id
    assert not forget_upload(stocked, path)
    assert path.exists()


def test_only_kept_copies_are_ever_removed(library, config, tmp_path):
    """A person's own file, the library itself, and what lies deeper or higher are left alone."""
    keep_upload(config, "a.txt", b"A.")
    own = tmp_path / "0123456789abcdef" / "own.txt"
    own.parent.mkdir()
    own.write_text("mine")
    deeper = config.home / "documents" / "0123456789abcdef" / "deeper" / "own.txt"
    deeper.parent.mkdir(parents=True)
    deeper.write_text("mine")
    other = config.home / "documents" / "not-an-id" / "own.txt"
    other.parent.mkdir()
    other.write_text("mine")
    for path in (own, deeper, other, config.database, config.home / "documents" / ".." / "library.sqlite3"):
        assert not forget_upload(library, path)
        assert path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_is_removed_and_never_followed(library, config, tmp_path):
    """Someone put one where a copy's folder would be."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "own.txt").write_text("mine")
    root = config.home / "documents"
    root.mkdir()
    link = root / "0123456789abcdef"
    link.symlink_to(outside)
    forget_upload(library, link / "own.txt")
    assert (outside / "own.txt").read_text() == "mine"


def test_a_second_page_that_adds_the_same_bytes_keeps_them(library, config):
    """The first to end must not take the file away from the second."""
    path = keep_upload(config, "a.txt", b"Same.")
    keep_upload(config, "a.txt", b"Same.")
    assert not forget_upload(library, path)
    assert path.exists()
    assert forget_upload(library, path)


def test_a_refused_upload_leaves_no_copy(library, config):
    """Ingestion itself sees to it, whoever started it and whatever became of the page."""
    path = keep_upload(config, "broken.pdf", b"This is not a PDF.")
    (result,) = add_all(library, [path])
    assert (result.status, result.reason) == ("refused", "wrong_type")
    assert kept_files(config) == []


def test_a_stopped_ingestion_keeps_the_copies_of_documents_only(stocked, config, files):
    """The one that is there already stays; those that were not reached go."""
    known = keep_upload(config, "recipes.txt", (files / "recipes.txt").read_bytes())
    others = [keep_upload(config, f"{n}.txt", f"Text {n}.".encode()) for n in range(3)]
    events = add(stocked, [known, *others])
    for event in events:
        if isinstance(event, FileFinished):
            break
    events.close()
    assert kept_files(config) == [known]


def test_an_ended_addition_forgets_the_copies_that_became_no_document(library, config):
    """Also when it ends by an error."""
    path = keep_upload(config, "a.txt", b"A.")
    with pytest.raises(ZeroDivisionError), settling(library, [path]):
        raise ZeroDivisionError
    assert not path.exists()


# Removing ---------------------------------------------------------------------------------------------------------


def test_removing_a_document_removes_its_copy_and_not_the_persons_file(stocked, config, files):
    """Nothing is left below the data folder; a file that was added by path stays where it is."""
    own = files / "recipes.txt"
    path = keep_upload(config, "recipes.txt", own.read_bytes())
    (result,) = add_all(stocked, [path])
    assert result.status == "unchanged"
    assert path.exists()
    stocked.remove(["recipes.txt"])
    assert own.exists()
    assert kept_files(config) == []
    assert not any("recipes" in str(path) for path in config.home.rglob("*"))


def test_removing_one_document_leaves_the_copies_of_others(library, config, insert):
    """Each folder belongs to one document."""
    gone, stays = insert(library, "gone.txt"), insert(library, "stays.txt", ("Other.",))
    for document_id in (gone, stays):
        (config.home / "documents" / document_id).mkdir(parents=True)
        (config.home / "documents" / document_id / "copy.txt").write_text("copy")
    library.remove([gone])
    assert [path.parent.name for path in kept_files(config)] == [stays]


# Sweeping ---------------------------------------------------------------------------------------------------------


KEEP_AND_DIE = (
    "import os\nfrom docmind.config import load_config\nfrom docmind.uploads import keep_upload\n"
    "config = load_config()\nkeep_upload(config, 'left.txt', b'Left behind.')\n"
    "(config.home / 'documents' / '.upload-0123').write_bytes(b'half a fi')\nos._exit(0)\n"
)


def test_what_a_crash_left_is_swept_and_documents_stay(stocked, config, files, in_child):
    """A whole copy without a document, and half a file."""
    known = keep_upload(config, "recipes.txt", (files / "recipes.txt").read_bytes())
    forget_upload(stocked, known)  # its adding has ended
    in_another_process(config, KEEP_AND_DIE, in_child)
    assert len(kept_files(config)) == 3
    assert sweep_uploads(stocked) == 0  # young: another process may be about to add it
    make_old(config)
    assert sweep_uploads(stocked) == 2
    assert kept_files(config) == [known]


def test_nothing_is_swept_while_documents_are_added(library, config, in_child):
    """Whoever adds them may have copies that are no documents yet."""
    in_another_process(config, KEEP_AND_DIE, in_child)
    make_old(config)
    with FileLock(config.home / "ingestion.lock"):
        assert sweep_uploads(library) == 0
    assert sweep_uploads(library) == 2


def test_a_copy_that_waits_to_be_added_is_not_swept(library, config):
    """However long it waits for its turn."""
    path = keep_upload(config, "a.txt", b"A.")
    make_old(config)
    assert sweep_uploads(library) == 0
    forget_upload(library, path)


def test_other_things_in_the_folder_are_not_swept(library, config):
    """Nor is anything when there is no folder."""
    assert sweep_uploads(library) == 0
    other = config.home / "documents" / "my folder" / "mine.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    make_old(config)
    assert sweep_uploads(library) == 0
    assert other.exists()


def test_a_copy_in_which_another_document_lies_is_not_swept(library, config, insert):
    """Someone changed a kept file and added it again by its path."""
    folder = config.home / "documents" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "changed.txt").write_text("changed")
    insert(library, "changed.txt", folder=folder)
    make_old(config)
    assert sweep_uploads(library) == 0
    assert (folder / "changed.txt").exists()


# The sample -------------------------------------------------------------------------------------------------------


def texts_of(path):
    """The text of each page of a PDF."""
    return [page.extract_text() for page in PdfReader(path).pages]


def test_the_sample_is_what_its_script_writes(tmp_path, in_child):
    """Three pages of text, small enough to travel with the program."""
    written = tmp_path / "sample.pdf"
    script = Path(__file__).parents[1] / "docs" / "sample" / "how_tides_work.py"
    subprocess.run([in_child.python, str(script), str(written)], env=in_child.environment, check=True, timeout=120)
    assert texts_of(sample_path()) == texts_of(written)
    assert len(texts_of(written)) == 3
    assert sample_path().stat().st_size < 60_000


def test_the_numbers_of_the_sample_agree_with_each_other():
    """Whoever checks an answer about it must not find it wrong."""
    _, rule, day = (" ".join(text.split()) for text in texts_of(sample_path()))
    twelfths = [int(number) for number in re.search(r"the range: ([\d, ]+)\.", rule)[1].split(",")]
    assert sum(twelfths) == 12
    low, high = (float(re.search(rf"{clock} ([\d.]+) m", day)[1]) for clock in ("06:10", "12:20"))
    causeway = float(re.search(r"lies ([\d.]+) metres above", day)[1])
    assert low + sum(twelfths[:2]) * (high - low) / 12 == pytest.approx(causeway)


# Collections and pages --------------------------------------------------------------------------------------------


def test_documents_are_filed_and_taken_out_again(library, insert):
    """Several at once; a collection without documents is gone, and a document that is gone is passed over."""
    a, b = insert(library, "a.txt"), insert(library, "b.txt", ("Other.",), collections=["farm"])
    library.set_collections([a, b, "0123456789abcdef"], add=["zoo", "farm"])
    assert [d.collections for d in library.documents()] == [("farm", "zoo")] * 2
    library.set_collections([a, b], remove=["farm", "no such"])
    assert [d.collections for d in library.documents()] == [("zoo",)] * 2
    assert library.collections() == ["zoo"]


def test_pages_are_told_with_their_state_and_counted_when_unread(library, insert):
    """Without their text, and a document that is wholly readable counts nothing."""
    some = insert(library, "some.pdf", ("One.", "", "Three."))
    insert(library, "all.txt", ("One.",))
    assert library.page_states(some) == [(1, "text", None), (2, "none", "scanned"), (3, "text", None)]
    assert library.unread_pages() == {}  # the made-up document says it is ready
    with_store_state(library, some, "partial")
    assert library.unread_pages() == {some: 1}


def with_store_state(library, document_id, state):
    """Set a document's state behind the library's back."""
    from docmind import store

    with store.writing(library.path) as db:
        db.execute("UPDATE documents SET state = ? WHERE id = ?", (state, document_id))
