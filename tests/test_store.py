"""The SQLite file: its schema and permissions, and what a person is told when it cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from docmind import store
from docmind.config import Config
from docmind.errors import LibraryBusy, LibraryDamaged, LibraryError, LibraryFull, LibraryTooNew
from docmind.library import Library


def columns(path):
    """(table, column) pairs of a database."""
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            (table, row[1]) for table in tables for row in db.execute(f"SELECT * FROM pragma_table_info('{table}')")
        }


def test_a_new_library_has_this_version_s_schema(config):
    """user_version counts the migrations."""
    Library(config)
    with closing(sqlite3.connect(config.database)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(store.MIGRATIONS)
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert ("pages", "sha256") in columns(config.database)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists instead of modes")
def test_only_the_owner_can_read_the_data_folder(config, insert):
    """Files are 0600 and folders 0700, the write-ahead log and the vectors among them, whatever the umask."""
    before = os.umask(0)
    try:
        library = Library(config)
        insert(library)
        library.vector_index()
        with store.reading(library.path):  # the write-ahead log is there while somebody reads
            paths = list(config.home.rglob("*"))
            assert {"library.sqlite3", "library.sqlite3-wal", "library.sqlite3-shm"} <= {path.name for path in paths}
            assert stat.S_IMODE(config.home.stat().st_mode) == 0o700
            for path in paths:
                assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)


def test_opening_again_changes_nothing(library, config, insert):
    """A second Library on the folder sees what the first wrote."""
    insert(library)
    assert Library(config).counts() == library.counts()


@pytest.mark.parametrize("attempt", range(20))
def test_many_threads_may_open_a_new_folder_at_once(config, attempt):
    """Programs that start together on a new folder do not stumble over each other; often enough to meet the race."""
    errors = []
    start = threading.Barrier(8)

    def open_it():
        start.wait()
        try:
            Library(config)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_library_of_a_newer_docmind_is_left_alone(library, config):
    """A user_version beyond ours raises LibraryTooNew, with what to do."""
    with closing(sqlite3.connect(config.database)) as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(LibraryTooNew, match="newer DocMind") as caught:
        Library(config)
    assert "newer DocMind" in caught.value.hint
    assert caught.value.reason == "library_too_new"


def test_an_unfinished_migration_leaves_the_old_version(library, config, insert, monkeypatch):
    """A migration is one transaction: a step that fails takes back those before it, and the next start tries again."""
    insert(library)
    good = "CREATE TABLE extra (a);"
    with monkeypatch.context() as patch:
        patch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, good + "\nCREATE TABLE extra (a);"))
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            Library(config)
    assert ("extra", "a") not in columns(config.database)
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, good))
    assert Library(config).counts()["documents"] == 1
    assert ("extra", "a") in columns(config.database)


@pytest.mark.parametrize("damage", ["overwritten", "cut", "beginning"])
def test_a_damaged_file_is_called_damaged(library, config, insert, damage):
    """LibraryDamaged and a hint, not a traceback of SQLite."""
    for number in range(30):
        insert(library, f"{number}.txt", ("words and words " * 200,))
    store.forget(config.database)
    data = bytearray(config.database.read_bytes())
    if damage == "overwritten":
        data[:] = b"this is no database" * 1000
    elif damage == "cut":
        data = data[: len(data) // 3]
    else:
        data[100:4096] = bytes(3996)
    for file in config.home.glob("library.sqlite3*"):
        file.unlink()
    config.database.write_bytes(data)
    with pytest.raises(LibraryDamaged) as caught:  # noqa: PT012
        damaged = Library(config)
        [damaged.pages(document.document_id) for document in damaged.documents()]
    assert "library.sqlite3" in caught.value.hint
    assert "backup" in caught.value.hint


def test_a_data_folder_that_is_a_file_is_said_to_be_none(tmp_path):
    """The hint names the ways to choose another."""
    (tmp_path / "taken").write_text("I am a file")
    with pytest.raises(LibraryError) as caught:
        Library(Config(home=tmp_path / "taken"))
    assert "DOCMIND_HOME" in caught.value.hint


def test_a_library_that_is_a_folder_is_said_to_be_unusable(config):
    """library.sqlite3 may be anything on somebody's disk."""
    config.database.mkdir(parents=True)
    with pytest.raises(LibraryError, match="cannot be opened"):
        Library(config)


@pytest.mark.skipif(sys.platform == "win32", reason="needs setuid")
def test_a_folder_one_may_not_write_to_is_a_library_error(in_child):
    """For root everything is writable: then a child gives up root and tries."""
    import tempfile

    folder = Path(tempfile.mkdtemp())  # tmp_path cannot be entered by others
    try:
        (folder / "home").mkdir()
        Library(Config(home=folder / "home"))
        store.forget(folder / "home" / "library.sqlite3")
        for file in (folder / "home").iterdir():
            file.chmod(0o444)
        (folder / "home").chmod(0o555)
        folder.chmod(0o755)
        code = (
            "import os, sys\n"
            "from docmind.library import open_library\nfrom docmind.errors import LibraryError\n"
            "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
            f"try: open_library({str(folder / 'home')!r})\n"
            "except LibraryError as error: print(type(error).__name__, error.hint)\n"
        )
        run = subprocess.run(
            [in_child.python, "-c", code], env=in_child.environment, capture_output=True, text=True, timeout=120
        )
        assert run.stdout.startswith("LibraryError "), (run.stdout, run.stderr)
        assert "--home" in run.stdout
    finally:
        (folder / "home").chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_is_called_full_and_keeps_what_was_there(library, config, insert, monkeypatch):
    """SQLite's own limit on pages stands for the disk: LibraryFull, and what did not fit is absent whole."""
    first = insert(library, "first.txt", ("the first document",))
    opened = store._open

    def open_on_a_full_disk(path):
        db = opened(path)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(store, "_open", open_on_a_full_disk)
        with pytest.raises(LibraryFull) as caught:
            insert(library, "second.txt", tuple(f"page {n} " + "word " * 500 for n in range(40)))
    assert caught.value.reason == "disk_full"
    assert "safe" in caught.value.hint
    assert isinstance(caught.value, OSError)
    assert [document.document_id for document in library.documents()] == [first]
    assert library.page(first, 1).text == "the first document"
    insert(library, "second.txt", ("now there is room",))
    assert library.counts()["documents"] == 2


def test_a_writer_that_waits_too_long_is_told_who_is_in_the_way(library, config, monkeypatch):
    """LibraryBusy, not a "database is locked" of SQLite."""
    monkeypatch.setattr(store, "BUSY_TIMEOUT_SECONDS", 0.05)
    with store.writing(config.database), pytest.raises(LibraryBusy) as caught, store.writing(config.database):
        pass
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.hint


def test_an_exception_takes_a_whole_transaction_back(library, config):
    """`writing` keeps all of a block or nothing of it."""
    with pytest.raises(KeyError), store.writing(config.database) as db:  # noqa: PT012
        db.execute("INSERT INTO meta VALUES ('a', 1)")
        raise KeyError
    with store.reading(config.database) as db:
        assert db.execute("SELECT 1 FROM meta WHERE key = 'a'").fetchone() is None


def test_a_reader_sees_one_moment(library, config, insert):
    """What is written while a reader reads is not in what it reads."""
    with store.reading(config.database) as db:
        before = db.execute("SELECT count(*) FROM documents").fetchone()[0]
        insert(library)
        assert db.execute("SELECT count(*) FROM documents").fetchone()[0] == before
    assert library.counts()["documents"] == before + 1
