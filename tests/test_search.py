"""A question → passages: the two searches, their fusion, and queries that nobody meant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docmind import search as searching
from docmind.errors import DocumentNotFound
from docmind.library import VectorIndex
from docmind.search import bm25_search, dense_search, fuse, query_words, search


def names(hits):
    """Documents in the order found."""
    return [hit.document for hit in hits]


@pytest.mark.parametrize(
    ("question", "document", "page"),
    [
        ("How many containers did Ellmere handle in 2023?", "harbour report 2023.pdf", 1),
        ("Who is the director of the pilot station?", "harbour report 2023.pdf", 2),
        ("When do bees leave the hive in a swarm?", "beekeeping.md", 1),
        ("How long is the cake in the oven?", "recipes.txt", 1),
        ("broth", "recipes.txt", 2),
    ],
)
def test_a_question_finds_the_page_that_answers_it(shelf, question, document, page):
    """In other words or in the very words."""
    best = search(shelf, question, 3)[0]
    assert (best.document, best.page) == (document, page)


def test_a_hit_leads_to_its_place_on_the_page(shelf):
    """start and end are code points of the stored page; ranks count from 1 and scores fall."""
    hits = search(shelf, "onion soup with wine", 5)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert shelf.page(hit.document_id, hit.page).text[hit.start : hit.end] == hit.text
    assert len({hit.passage_id for hit in hits}) == len(hits)


def test_the_same_question_gives_the_same_hits(shelf):
    """Order and scores."""
    assert search(shelf, "honey in winter", 5) == search(shelf, "honey in winter", 5)


def test_k_is_how_many_at_most(shelf):
    """More than there are is not an error."""
    assert len(search(shelf, "bees", 2)) == 2
    assert len(search(shelf, "bees", 1000)) == shelf.counts()["passages"]


def test_filters_by_document_and_collection_hold_for_every_hit(shelf):
    """By any name of a document; both together are an and."""
    (bees,) = [document for document in shelf.documents() if document.name == "beekeeping.md"]
    for key in (bees.document_id, bees.name, bees.path):
        assert set(names(search(shelf, "containers in the harbour", 5, documents=[key]))) == {"beekeeping.md"}
    both = search(shelf, "winter", 10, documents=["beekeeping.md", "recipes.txt"])
    assert set(names(both)) == {"beekeeping.md", "recipes.txt"}
    assert len(search(shelf, "winter", 10, collections=["all"])) == shelf.counts()["passages"]
    with pytest.raises(DocumentNotFound, match="no collection 'none of that name'"):
        search(shelf, "winter", 10, collections=["none of that name"])
    both = search(shelf, "winter", 10, collections=["all"], documents=["beekeeping.md"])
    assert set(names(both)) == {"beekeeping.md"}


def test_an_unknown_document_is_an_error_that_names_the_nearest(shelf):
    """Not an empty result."""
    with pytest.raises(DocumentNotFound) as caught:
        search(shelf, "winter", documents=["beekeping.md"])
    assert "'beekeeping.md'" in caught.value.hint


@pytest.mark.parametrize("query", ["", "  \n", "\0"], ids=["empty", "blank", "nul"])
def test_no_question_finds_nothing_or_anything_but_never_fails(shelf, query):
    """Nothing to look for."""
    assert isinstance(search(shelf, query), list)


ODD = [
    "what is the",
    '"',
    '"unclosed',
    "*",
    "honey*",
    "NEAR(honey winter, 2)",
    "NEAR(",
    "-",
    "-honey",
    "honey AND",
    "NOT honey",
    "title:honey",
    "^honey",
    "(honey",
    "{title text}: x",
    "';--",
    "\\",
    "%",
    "🙂",
    "漢字",
    "²",
    "a\0b",
    "word " * 20_000,
    "x" * 100_000,
]


@pytest.mark.parametrize("query", ODD, ids=lambda query: repr(query[:20]))
def test_odd_questions_never_fail_in_full_text_search(shelf, query):
    """Stop words only, FTS5 syntax, 100,000 characters, other scripts."""
    assert len(bm25_search(shelf, query, 3)) <= 3


@pytest.mark.parametrize("query", ODD[::4] + ODD[-2:], ids=lambda query: repr(query[:20]))
def test_odd_questions_never_fail(shelf, query):
    """Through the model, too."""
    assert len(search(shelf, query, 3)) <= 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=50))
def test_full_text_search_takes_any_text(shelf, query):
    """No syntax of FTS5 gets through."""
    assert isinstance(bm25_search(shelf, query, 5), list)


def test_an_empty_library_finds_nothing(library):
    """And loads no model for it."""
    assert search(library, "anything") == []


# Its parts --------------------------------------------------------------------------------------------------------


def test_fusion_is_reciprocal_rank_with_sixty():
    """a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/62, d: 1/63; b before a; equal sums in the order of the ids."""
    assert fuse([[1, 2, 4], [2, 3, 1]]) == [2, 1, 3, 4]
    assert searching.RRF_K == 60
    assert fuse([[5], [3]]) == [3, 5]
    assert fuse([[], []]) == []


def test_question_words_are_left_out_unless_there_are_no_others():
    """Each word once, in order."""
    assert query_words("What is the Net income of the net?") == ["net", "income"]
    assert query_words("what is the") == ["what", "is", "the"]
    assert query_words("C++ & R_2") == ["c", "r", "2"]
    assert query_words("") == []
    assert len(query_words(" ".join(f"w{n}" for n in range(100)))) == searching.MAX_QUERY_WORDS


def test_dense_search_is_exact():
    """The same as sorting all; ties in the order of the passages; documents outside the filter never."""
    random = np.random.default_rng(4)
    vectors = random.normal(size=(500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[100] = vectors[7]
    documents = np.arange(500) % 5
    index = VectorIndex("1", np.arange(500) * 2, documents, vectors)
    query = vectors[7]
    order = np.lexsort((np.arange(500), -(vectors @ query)))
    assert dense_search(index, query, 30) == (order[:30] * 2).tolist()
    assert dense_search(index, query, 30)[:2] == [14, 200]
    inside = [n for n in order if documents[n] in (1, 3)]
    assert dense_search(index, query, 30, frozenset((1, 3))) == [n * 2 for n in inside[:30]]
    assert len(dense_search(index, query, 9999, frozenset((1, 3)))) == 200
    assert dense_search(index, query, 5, frozenset((77,))) == []


def test_full_text_prefers_rare_words_and_finds_other_forms(library, insert):
    """BM25 with a stemmer and without accents."""
    insert(library, "a.txt", ("the boats were repaired", "the boat was sold", "a café and a boat"))
    insert(library, "b.txt", ("nothing of the kind", "a boat, a boat"))
    ids = {library.passages([n])[0].text: n for n in range(1, 6)}
    assert bm25_search(library, "repairing boats", 5)[0] == ids["the boats were repaired"]
    assert bm25_search(library, "CAFE", 5) == [ids["a café and a boat"]]
    assert set(bm25_search(library, "boat", 5)) == set(ids.values()) - {ids["nothing of the kind"]}
    assert len(bm25_search(library, "boat", 2)) == 2


def test_common_words_are_not_scored_beyond_the_cap(library, insert, monkeypatch):
    """The rarest word always is; a common one only while the rows fit."""
    insert(library, "a.txt", tuple(f"common words, number {n}" + (" rare" if n == 7 else "") for n in range(30)))
    monkeypatch.setattr(searching, "MAX_MATCHED_ROWS", 10)
    assert bm25_search(library, "common rare", 50) == [8]
    assert len(bm25_search(library, "common", 50)) == 30
    monkeypatch.setattr(searching, "MAX_MATCHED_ROWS", 100)
    found = bm25_search(library, "common rare", 50)
    assert (found[0], len(found)) == (8, 30)


def test_full_text_filters_before_it_counts(library, insert):
    """The best of the allowed documents, not the allowed among the best."""
    insert(library, "many.txt", tuple("boat " * 9 for _ in range(50)))
    insert(library, "one.txt", ("a long text about many things and one boat",))
    allowed = searching._allowed_documents(library, [], ["one.txt"])
    assert [library.passages([n])[0].document for n in bm25_search(library, "boat", 3, allowed)] == ["one.txt"]


def test_additions_and_removals_are_found_at_once(shelf, config, files):
    """In a library that has been searched before."""
    from docmind.library import Library

    library = Library(config)
    library.add(files / "recipes.txt")
    assert names(search(library, "honey for the winter", 5)) == ["recipes.txt"] * 2
    library.add(files / "beekeeping.md")
    assert search(library, "honey for the winter", 5)[0].document == "beekeeping.md"
    library.remove(["beekeeping.md"])
    assert names(search(library, "honey for the winter", 5)) == ["recipes.txt"] * 2
