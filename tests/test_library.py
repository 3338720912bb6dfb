"""Documents on disk: visible whole or not at all, replaced, moved, and removed without a trace."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import docmind
from docmind import store
from docmind.embed import EmbeddingIdentity
from docmind.errors import DocumentNotFound, EmbeddingChanged, LibraryDamaged
from docmind.library import Library, NewPassage, open_library, text_sha256
from docmind.parse import DocumentInfo, ParsedPage
from docmind.search import bm25_search, dense_search


def check_nothing_is_half(library):
    """Each passage has one vector and one full-text row and lies on a page whose hash is right; nothing is orphaned."""
    with store.reading(library.path) as db:
        passages = {row[0] for row in db.execute("SELECT id FROM passages")}
        assert passages == {row[0] for row in db.execute("SELECT passage_id FROM vectors")}
        assert passages == {row[0] for row in db.execute("SELECT rowid FROM passages_fts")}
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.execute("SELECT count(*) FROM passages_fts WHERE passages_fts MATCH 'x'").fetchone()
        texts = dict(db.execute("SELECT rowid, text FROM passages_fts").fetchall())
    for document in library.documents():
        pages = library.pages(document.document_id)  # checks the hashes
        assert [page.page for page in pages] == list(range(1, document.pages + 1))
        for page in pages:
            found = library.passages_of_page(document.document_id, page.page)
            assert "".join(passage.text for passage in found) == page.text
            assert all(texts[passage.passage_id] == passage.text for passage in found)
    assert len(library.vector_index().vectors) == len(passages)


def bytes_of(folder):
    """Every byte of every file in a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_document_comes_back_as_it_was_put_in(library, insert):
    """Name, pages, passages and counts."""
    document_id = insert(library, "Ä note.txt", ("First page.", "", "Third 🙂 page."), collections=["b", "a"])
    (document,) = library.documents()
    assert document.document_id == document_id == document.sha256[:16]
    assert (document.name, document.pages, document.pages_without_text, document.passages) == ("Ä note.txt", 3, 1, 2)
    assert document.collections == ("a", "b")
    assert document.path == str(Path("/documents/Ä note.txt").absolute())
    assert [page.source for page in library.pages(document_id)] == ["text", "none", "text"]
    assert library.page(document_id, 3).text == "Third 🙂 page."
    check_nothing_is_half(library)


def test_a_document_becomes_visible_in_one_transaction(library, insert):
    """While pages and passages are written, others see nothing of it; an exception leaves nothing."""
    seen = []

    def passages():
        yield NewPassage(1, 0, 4, "page", np.eye(8, dtype=np.float32)[0])
        seen.append(Library(library.config).counts())
        raise KeyboardInterrupt

    info, page = DocumentInfo("text", 1, ""), ParsedPage(1, "page", "text")
    identity = EmbeddingIdentity("made-up", 8, np.eye(8, dtype=np.float32)[0])
    with pytest.raises(KeyboardInterrupt):
        library.insert_document(
            info,
            [page],
            passages(),
            path=Path("/a.txt"),
            sha256="0" * 64,
            title="a",
            size_bytes=4,
            state="ready",
            reason=None,
            hint="",
            collections=["c"],
            identity=identity,
        )
    empty = {"documents": 0, "pages": 0, "passages": 0, "generation": 0}
    assert seen == [empty]
    assert library.counts() == empty
    assert library.collections() == []
    assert library.embedding_identity() is None
    check_nothing_is_half(library)


def test_another_library_object_sees_an_addition_at_once(library, config, insert):
    """The generation number makes a second process map the vectors anew."""
    other = Library(config)
    insert(library, "one.txt")
    first = other.vector_index()
    assert len(first.vectors) == 1
    assert other.vector_index() is first  # nothing changed, nothing read
    insert(library, "two.txt", ("Two.", "pages"))
    assert len(other.vector_index().vectors) == 3
    assert other.vector_index().generation == library.vector_index().generation


def test_another_process_sees_an_addition_at_once(library, config, insert, in_child):
    """The same across processes."""
    code = (
        "from docmind.library import open_library\nlibrary = open_library()\n"
        "print(len(library.vector_index().vectors), flush=True)\n"
        "input()\nprint(len(library.vector_index().vectors), flush=True)\n"
    )
    insert(library, "one.txt")
    child = subprocess.Popen(
        [in_child.python, "-c", code],
        env=in_child.environment | {"DOCMIND_HOME": str(config.home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "1\n"
        insert(library, "two.txt")
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "2\n"


def test_the_vectors_are_those_that_were_put_in(library, insert):
    """Row by row, in the order of the passage ids, with the document each belongs to."""
    for n in range(5):
        insert(library, f"{n}.txt", tuple(f"page {n} {m}" for m in range(n + 1)))
    index = library.vector_index()
    with store.reading(library.path) as db:
        rows = db.execute(
            "SELECT v.passage_id, d.rowid, v.vector FROM vectors v JOIN passages p ON p.id = v.passage_id"
            " JOIN documents d ON d.id = p.document_id ORDER BY v.passage_id"
        ).fetchall()
    assert [row[0] for row in rows] == index.passage_ids.tolist()
    assert [row[1] for row in rows] == index.documents.tolist()
    assert np.array_equal(np.stack([np.frombuffer(row[2], "<f4") for row in rows]), index.vectors)
    assert not index.vectors.flags.writeable
    assert len(list((library.config.home / "derived").iterdir())) == 1  # no file of an older generation stays


def test_a_derived_file_that_is_cut_off_is_derived_again(library, config, insert):
    """It is only a copy."""
    insert(library, "a.txt", ("one", "two"))
    vectors = np.array(library.vector_index().vectors)
    (file,) = (config.home / "derived").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(Library(config).vector_index().vectors, vectors)


def test_the_vectors_of_a_library_that_was_thrown_away_are_not_used(library, config, insert):
    """A library begun anew in the same folder counts to the same generation: its file has another name."""
    insert(library, "old.txt")
    old = np.array(library.vector_index().vectors)
    for file in config.home.glob("library.sqlite3*"):
        file.unlink()
    renewed = Library(config)
    insert(renewed, "new.txt")
    assert not np.array_equal(renewed.vector_index().vectors, old)
    assert not np.array_equal(library.vector_index().vectors, old)  # also for an object that was open all along


@pytest.mark.parametrize(
    "damage", ["DELETE FROM vectors", "UPDATE vectors SET vector = x'0102'"], ids=["missing", "short"]
)
def test_vectors_that_are_damaged_are_said_to_be(library, insert, damage):
    """LibraryDamaged names the command that mends it."""
    insert(library, "a.txt", ("one", "two"))
    with store.writing(library.path) as db:
        db.execute(damage + " WHERE passage_id = 1")
        db.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
    with pytest.raises(LibraryDamaged) as caught:
        library.vector_index()
    assert "reindex" in caught.value.hint
    library.replace_vectors(iter([(1, np.eye(8)[0]), (2, np.eye(8)[1])]), library.embedding_identity())
    assert np.array_equal(library.vector_index().vectors, np.eye(8)[:2].astype(np.float32))


def test_a_page_changed_on_the_disk_is_noticed(library, insert):
    """Every page is stored with the hash of its text."""
    document_id = insert(library, "a.txt", ("The bill is 100 euros.",))
    assert library.page(document_id, 1).sha256 == text_sha256("The bill is 100 euros.")
    with store.writing(library.path) as db:
        db.execute("UPDATE pages SET text = 'The bill is 900 euros.'")
    with pytest.raises(LibraryDamaged, match="Page 1"):
        library.page(document_id, 1)


# Replacing --------------------------------------------------------------------------------------------------------


def test_new_bytes_at_a_known_path_replace_the_old(library, insert):
    """The old passages, vectors and full-text rows go; the collections stay."""
    old = insert(library, "plan.txt", ("the zeppelin plan", "page two"), collections=["work"], seed=1)
    new = insert(library, "plan.txt", ("the submarine plan",), collections=["urgent"], seed=2)
    assert new != old
    (document,) = library.documents()
    assert document.document_id == new
    assert document.collections == ("urgent", "work")
    assert bm25_search(library, "zeppelin", 10) == []
    assert len(bm25_search(library, "submarine", 10)) == 1
    assert b"zeppelin" not in bytes_of(library.config.home).lower()
    check_nothing_is_half(library)


def test_bytes_that_another_path_still_leads_to_stay(library, insert):
    """Two paths, one document; new bytes at one of them leave the document to the other."""
    old = insert(library, "plan.txt", ("the plan",), seed=1, collections=["work"])
    assert not library.add_source(old, Path("/copies/plan.txt"), [])
    new = insert(library, "plan.txt", ("another plan",), seed=2)
    assert {document.document_id for document in library.documents()} == {old, new}
    assert library.document(old).path == str(Path("/copies/plan.txt").absolute())
    assert library.document(new).collections == ("work",)
    check_nothing_is_half(library)


def test_a_path_that_turns_to_bytes_already_known_keeps_its_collections(library, insert):
    """A copy of b over a: a's document goes, and b's takes its collections over."""
    insert(library, "a.txt", ("aardvark",), collections=["zoo"])
    b = insert(library, "b.txt", ("buffalo",), collections=["farm"])
    assert library.add_source(b, Path("/documents/a.txt"), [])
    (document,) = library.documents()
    assert document.document_id == b
    assert document.collections == ("farm", "zoo")
    assert b"aardvark" not in bytes_of(library.config.home).lower()
    check_nothing_is_half(library)


# Removing ---------------------------------------------------------------------------------------------------------


def test_removing_leaves_none_of_the_words_in_any_byte(library, config, insert):
    """Database, write-ahead log, full text index and vectors: no word of it, and the others untouched."""
    kept = insert(library, "kept.txt", ("An umbrella stands in the hall. " * 40,))
    secret = tuple(f"Xylophonist{n} qzwx{n}jv sleeps in room {n}. " * 30 for n in range(40))
    gone = insert(library, "vkqy secret.txt", secret, collections=["private"])
    insert(library, "later.txt", ("Rain fell on the roof. " * 40,))
    library.vector_index()
    assert b"qzwx" in bytes_of(config.home).lower()
    # Another process has the library open and does nothing: SQLite does not tidy up by itself then.
    with closing(sqlite3.connect(library.path)) as idle:
        idle.execute("SELECT count(*) FROM documents").fetchone()
        (removed,) = library.remove([gone])
        everything = bytes_of(config.home).lower()
    assert removed.name == "vkqy secret.txt"
    for word in (b"xylophonist", b"qzwx", b"vkqy", gone.encode(), removed.sha256.encode()):
        assert word not in everything, word
    assert library.page(kept, 1).text.startswith("An umbrella")
    assert len(bm25_search(library, "umbrella", 5)) == 1
    assert len(library.documents()) == 2
    check_nothing_is_half(library)


def test_removing_while_another_process_reads_leaves_nothing_either(library, config, insert):
    """The write-ahead log is emptied when the reader has gone, which the removal waits for."""
    insert(library, "a.txt", ("keep this",))
    gone = insert(library, "b.txt", ("qzwxjv " * 200,))
    is_reading, may_end = threading.Event(), threading.Event()

    def read():
        with store.reading(config.database) as db:
            db.execute("SELECT count(*) FROM pages").fetchone()
            is_reading.set()
            may_end.wait(60)

    reader = threading.Thread(target=read)
    reader.start()
    is_reading.wait(60)
    threading.Timer(1.0, may_end.set).start()
    library.remove([gone])
    reader.join()
    assert b"qzwx" not in bytes_of(config.home)


def test_a_removal_that_was_killed_is_finished_by_the_next_opening(library, config, insert, in_child):
    """Between the transaction and the overwriting a process may die."""
    insert(library, "a.txt", ("keep this",))
    gone = insert(library, "b.txt", ("qzwxjv " * 200,))
    library.vector_index()
    code = (
        "import os, sys\nfrom docmind import store\nfrom docmind.library import open_library\n"
        "store.forget = lambda path: os._exit(9)\n"
        f"open_library().remove(['{gone}'])\n"
    )
    run = subprocess.run([in_child.python, "-c", code], env=in_child.environment, timeout=120, check=False)
    assert run.returncode == 9
    assert store.has_to_forget(config.database)
    reopened = Library(config)
    assert not store.has_to_forget(config.database)
    assert b"qzwx" not in bytes_of(config.home)
    assert [document.name for document in reopened.documents()] == ["a.txt"]


def test_removing_one_that_is_not_there_removes_nothing(library, insert):
    """All or none, and the nearest name."""
    document_id = insert(library, "harbour.txt")
    with pytest.raises(DocumentNotFound) as caught:
        library.remove([document_id, "harbor.txt"])
    assert "'harbour.txt'" in caught.value.hint
    assert len(library.documents()) == 1


def test_two_names_of_one_document_remove_it_once(library, insert):
    """By id and by name."""
    document_id = insert(library, "a.txt")
    assert [document.document_id for document in library.remove([document_id, "a.txt"])] == [document_id]


def test_an_emptied_library_takes_any_model(library, insert):
    """The canary goes with the last document."""
    insert(library, "a.txt")
    insert(library, "b.txt")
    library.remove(["a.txt"])
    assert library.embedding_identity() is not None
    library.remove(["b.txt"])
    assert library.embedding_identity() is None
    other = EmbeddingIdentity("other", 4, np.eye(4, dtype=np.float32)[0])
    library.replace_vectors(iter(()), other)
    assert library.embedding_identity() is None


def test_an_id_is_never_given_twice(library, insert):
    """Passage ids go on after a removal: what is cached under one stays true."""
    insert(library, "a.txt", ("one", "two"))
    before = library.vector_index().passage_ids.max()
    library.remove(["a.txt"])
    insert(library, "b.txt")
    assert library.vector_index().passage_ids.min() > before


# Finding documents ------------------------------------------------------------------------------------------------


def test_a_document_is_found_by_id_part_of_an_id_name_and_path(library, insert, tmp_path, monkeypatch):
    """As a person would type it."""
    document_id = insert(library, "a.txt", folder=tmp_path)
    insert(library, "b.txt", folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    for key in (document_id, document_id[:8], "a.txt", str(tmp_path / "a.txt"), "./a.txt", f"../{tmp_path.name}/a.txt"):
        assert library.document(key).document_id == document_id, key


@pytest.mark.parametrize(
    "key", ["", "nothing", "a\0b", "\udcff", "~nobody-at-all/x", "%", "_" * 8, "'; DROP TABLE pages"]
)
def test_a_key_that_leads_nowhere_is_not_found(library, insert, key):
    """Whatever was typed."""
    insert(library, "a.txt")
    with pytest.raises(DocumentNotFound):
        library.document(key)


def test_a_name_of_two_documents_is_ambiguous(library, insert):
    """The hint lists their ids."""
    ids = {insert(library, "a.txt", folder=folder, seed=folder) for folder in ("/x", "/y")}
    with pytest.raises(DocumentNotFound) as caught:
        library.document("a.txt")
    assert caught.value.reason == "document_ambiguous"
    assert all(document_id in caught.value.hint for document_id in ids)


def test_collections_are_listed_and_filter(library, insert):
    """A document may be in several, or in none."""
    insert(library, "a.txt", collections=["x", "y"])
    insert(library, "b.txt", collections=["y"])
    insert(library, "c.txt")
    assert library.collections() == ["x", "y"]
    assert [d.name for d in library.documents("y")] == ["a.txt", "b.txt"]
    assert library.documents("z") == []
    assert len(library.documents()) == 3


def test_a_page_that_is_not_there_is_not_found(library, insert):
    """Pages count from 1."""
    document_id = insert(library)
    for number in (0, 2, -1):
        with pytest.raises(DocumentNotFound):
            library.page(document_id, number)


def test_a_file_name_that_is_no_utf8_is_stored_readably(library, insert):
    """On Linux a name may be any bytes."""
    insert(library, os.fsdecode(b"caf\xe9.txt"))
    (document,) = library.documents()
    json.dumps(document.name).encode("ascii")
    document.name.encode("utf-8")
    assert document.name.startswith("caf")
    assert library.document(os.fsdecode(b"caf\xe9.txt")) == document


# The model --------------------------------------------------------------------------------------------------------


def test_another_model_of_the_same_dimension_is_noticed(library, insert):
    """By its canary: neither name nor dimension tells."""
    insert(library)
    same = EmbeddingIdentity("renamed", 8, np.eye(8, dtype=np.float32)[0])
    library.check_embedding(same)
    other = EmbeddingIdentity("made-up", 8, np.eye(8, dtype=np.float32)[1])
    with pytest.raises(EmbeddingChanged) as caught:
        library.check_embedding(other)
    assert "reindex" in caught.value.hint


# The folder -------------------------------------------------------------------------------------------------------


def test_the_folder_can_be_moved(library, config, insert):
    """Rename it, and everything works at the new place."""
    document_id = insert(library, "a.txt", ("The heron stands in the water.",))
    library.vector_index()
    moved = config.home.with_name("moved")
    config.home.rename(moved)
    library = open_library(moved)
    assert library.page(document_id, 1).text == "The heron stands in the water."
    assert len(library.vector_index().vectors) == 1
    insert(library, "b.txt")
    assert library.remove(["a.txt"])[0].document_id == document_id
    check_nothing_is_half(library)
    assert not config.home.exists()


def test_docmind_home_names_the_folder(tmp_path):
    """`open_library()` without arguments."""
    assert docmind.open_library().config.home == tmp_path / "home"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60).map(str.strip),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_comes_back_and_can_be_removed(library, insert, pages):
    """Any Unicode but NUL, where SQLite ends a text; docmind.parse.normalise takes it out."""
    document_id = insert(library, "any.txt", tuple(pages))
    assert [page.text for page in library.pages(document_id)] == pages
    for page in library.pages(document_id):
        for passage in library.passages_of_page(document_id, page.page):
            assert passage.text == page.text
    library.remove([document_id])
    assert library.counts()["passages"] == 0


def test_nothing_found_in_an_empty_library(library):
    """No documents is a normal state."""
    assert library.documents() == []
    index = library.vector_index()
    assert index.vectors.shape[0] == 0
    assert dense_search(index, np.zeros(index.vectors.shape[1], np.float32), 5) == []
    assert bm25_search(library, "anything", 5) == []
