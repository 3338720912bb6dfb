"""Vectors made by a model of a backend: chosen, tried, noticed when it changes, and never mixed with others."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from servers import openai_compatible, vectors
from servers.ollama import serve
from waiting import wait_until

from docmind import embed, ingest
from docmind import vectors as choosing
from docmind.answer import Answer, ask
from docmind.backends.served_embedding import ServedEmbedding
from docmind.cli import main
from docmind.config import Config
from docmind.doctor import run_checks
from docmind.errors import DocMindError, EmbeddingChanged, EmbeddingFailed
from docmind.ingest import FileFinished
from docmind.library import Library
from docmind.search import search
from docmind.settings import Settings, read_settings, save_settings

QUESTIONS = ("How many containers did Ellmere handle in 2023?", "How long is the cake in the oven?", "broth")
NOMIC = "ollama:nomic-embed-text"


@pytest.fixture
def server():
    """A stand-in whose vectors are those of the model that comes with DocMind."""
    embed.load_embedding()  # no deadline waits for that
    with serve() as running:
        yield running


def use(config, server, name=NOMIC, **options):
    """Chooses a model of a stand-in without trying it."""
    save_settings(config, Settings(embedding=name, embedding_options={"url": server.url, **options}))


def found(library, questions=QUESTIONS):
    """What each question finds, best first: place and score."""
    return [[(hit.document, hit.page, hit.start, hit.score) for hit in search(library, text, 5)] for text in questions]


def texts_asked(server):
    """All texts that vectors were asked for."""
    return [text for path, body in server.requests if path == "/api/embed" for text in body["input"]]


def add(library, *paths):
    """Adds files; gives the results, and the error that ended it."""
    results = []
    try:
        results.extend(event.result for event in ingest.add(library, paths) if isinstance(event, FileFinished))
    except DocMindError as error:
        return results, error
    return results, None


@pytest.fixture
def run(capsys, config):
    """Runs a command on this test's data folder; gives its status, stdout and stderr."""

    def call(*argv):
        status = main(["--home", str(config.home), *argv])
        return status, *capsys.readouterr()

    return call


# The same results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ollama", "openai-compatible"])
def test_the_packaged_model_behind_a_server_finds_what_it_finds_here(stocked, config, files, kind):
    """Documents added and questions asked through a server: the same passages in the same order, the same scores."""
    expected = found(stocked)
    other = Config(home=config.home.parent / "other")
    if kind == "ollama":
        serving, name = serve(), NOMIC
    else:
        serving, name = openai_compatible.serve(models=["embed"]), "openai-compatible:embed"
    with serving as server:
        use(other, server, name)
        library = Library(other)
        results, error = add(library, files)
        assert error is None
        assert {result.status for result in results} == {"added"}
        assert library.embedding_identity().name.startswith(name)
        here, there = stocked.vector_index().vectors, library.vector_index().vectors
        assert np.allclose(here @ here.T, there @ there.T, atol=2e-2)
        for before, after in zip(expected, found(library), strict=True):
            assert [hit[:3] for hit in after] == [hit[:3] for hit in before]
            assert [hit[3] for hit in after] == pytest.approx([hit[3] for hit in before], abs=2e-2)
        # The same model needs no new index, wherever it runs.
        use(config, server, name)
        assert [hit[:3] for hit in found(stocked)[0]] == [hit[:3] for hit in expected[0]]


def test_the_order_of_the_best_is_not_the_servers(stocked, server):
    """Its vectors find candidates; the score, below which nothing is answered, is that of the packaged model."""
    expected = found(stocked)
    # All near each other, as those of many models are: the nearest stay the nearest, every cosine is about .9.
    server.vectors = lambda texts: [[*vector, 3.0] for vector in vectors.packaged(texts)]
    use(stocked.config, server)
    list(ingest.reindex(stocked))
    for before, after in zip(expected, found(stocked), strict=True):
        assert {hit[:3]: hit[3] for hit in after} == pytest.approx({hit[:3]: hit[3] for hit in before}, abs=2e-2)


# Another model ----------------------------------------------------------------------------------------------------


def test_another_model_is_noticed_and_reindexing_takes_it_over(stocked, server, files):
    """Neither searching nor adding mixes vectors; going back is another change."""
    server.vectors = vectors.another
    use(stocked.config, server)
    before = np.array(stocked.vector_index().vectors)
    with pytest.raises(EmbeddingChanged, match="nomic-embed-text"):
        search(stocked, "broth")
    (files / "new.txt").write_text("Something new.", encoding="utf-8")
    assert isinstance(add(stocked, files / "new.txt")[1], EmbeddingChanged)
    assert len(stocked.documents()) == 3
    assert list(ingest.reindex(stocked))[-1].done == len(before)
    assert np.allclose(stocked.vector_index().vectors, np.roll(before, 7, axis=1), atol=2e-2)
    assert search(stocked, "broth")[0].document == "recipes.txt"
    assert add(stocked, files / "new.txt")[1] is None
    save_settings(stocked.config, Settings())
    with pytest.raises(EmbeddingChanged, match="nomic-embed-text"):
        search(stocked, "broth")
    list(ingest.reindex(stocked))
    assert search(stocked, "broth")[0].document == "recipes.txt"


def test_a_model_that_changes_behind_its_name_is_noticed(stocked, server):
    """At the next question, though nothing was chosen anew."""
    use(stocked.config, server)
    assert search(stocked, "broth")
    server.vectors = vectors.another
    with pytest.raises(EmbeddingChanged):
        search(stocked, "broth")
    server.vectors = lambda texts: [[1.0, 2.0, 3.0] for _ in texts]  # of another dimension
    with pytest.raises(EmbeddingChanged):
        search(stocked, "broth")


@pytest.mark.parametrize("after", [lambda texts: vectors.another(texts), lambda texts: [[1.0, 2.0] for _ in texts]])
def test_a_model_that_changes_while_a_file_is_read_leaves_nothing_of_it(library, server, files, after):
    """Nor while all is indexed again: the vectors before stay."""
    calls = 0

    def changing(texts):
        nonlocal calls
        calls += 1
        return vectors.packaged(texts) if calls == 1 else after(texts)

    use(library.config, server)
    server.vectors = changing
    assert isinstance(add(library, files / "recipes.txt")[1], EmbeddingChanged)
    assert library.documents() == []
    server.vectors = vectors.packaged
    assert add(library, files / "recipes.txt")[1] is None
    vectors_before, calls, server.vectors = np.array(library.vector_index().vectors), 0, changing
    with pytest.raises(EmbeddingChanged):
        list(ingest.reindex(library))
    assert np.array_equal(library.vector_index().vectors, vectors_before)


def test_another_prefix_of_passages_is_another_model(library, server, files):
    """Its vectors are others: here, of a model to which the first word is all."""
    server.vectors = lambda texts: [[1.0, 0.0] if text.startswith("passage") else [0.0, 1.0] for text in texts]
    use(library.config, server)
    assert add(library, files / "recipes.txt")[1] is None
    use(library.config, server, passage_prefix="passage: ")
    with pytest.raises(EmbeddingChanged):
        search(library, "broth")
    use(library.config, server, query_prefix="query: ")
    assert search(library, "broth")[0].document == "recipes.txt"
    assert texts_asked(server)[-1] == "query: broth"


def test_two_libraries_of_one_process_have_their_own_models(stocked, config, server, files):
    """Each by its own settings, in turns."""
    other = Library(Config(home=config.home.parent / "other"))
    server.vectors = vectors.another
    use(other.config, server)
    assert add(other, files)[1] is None
    expected = found(stocked)
    asked = len(server.requests)
    for _ in range(2):
        assert [[hit[:3] for hit in hits] for hits in found(other)] == [[hit[:3] for hit in hits] for hits in expected]
        assert found(stocked) == expected
    assert len(server.requests) == asked + 2 * 2 * len(QUESTIONS)  # the canary and the question, of one library
    assert (other.embedding_identity().name, stocked.embedding_identity().name) == (NOMIC, embed.PACKAGED)


def test_a_folder_in_the_environment_wins(stocked, server, monkeypatch):
    """And then nothing is sent anywhere."""
    monkeypatch.setenv("DOCMIND_EMBEDDING", str(embed.model_folder()))
    use(stocked.config, server)
    assert search(stocked, "broth")[0].document == "recipes.txt"
    assert server.requests == []


# When it fails ----------------------------------------------------------------------------------------------------


def test_a_question_with_a_dead_server_is_an_error_with_both_ways_out(stocked):
    """Not half a search, and no other chat model is tried for it."""
    with serve() as gone:
        use(stocked.config, gone)
        assert search(stocked, "broth")
    with pytest.raises(EmbeddingFailed) as caught:
        list(ask(stocked, "How much honey does a colony need?"))
    assert caught.value.reason == "unreachable"
    assert "docmind settings embedding default" in caught.value.hint
    assert "ollama pull nomic-embed-text" in caught.value.hint


def test_a_search_that_waits_for_its_server_can_be_stopped(stocked, server):
    """The answer ends as stopped, and the server is left."""
    use(stocked.config, server)
    search(stocked, "broth")
    server.fault = "silence"
    stop, events = threading.Event(), []
    thread = threading.Thread(target=lambda: events.extend(ask(stocked, "How much honey?", stop=stop)))
    thread.start()
    server.wait_for(lambda: server.answering == 1)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(events[-1], Answer)
    assert (events[-1].finished, events[-1].reason) == ("stopped", "stopped")
    server.wait_for_hang_up()


@pytest.mark.parametrize("fault", ["error 500", "not a number"])
def test_a_file_whose_vectors_cannot_be_made_is_refused_whole(library, server, files, fault):
    """With the reason; files before it stay, those after it are not begun, and adding again takes up there."""
    use(library.config, server)
    assert add(library, files / "beekeeping.md")[1] is None
    server.fault = fault
    results, error = add(library, files)  # by name: beekeeping, harbour, recipes
    assert [result.status for result in results] == ["unchanged", "refused"]
    assert results[1].reason == error.reason
    assert "docmind settings embedding default" in results[1].hint
    assert isinstance(error, EmbeddingFailed)
    assert [document.name for document in library.documents()] == ["beekeeping.md"]
    server.fault = ""
    results, error = add(library, files)
    assert ([result.status for result in results], error) == (["unchanged", "added", "added"], None)


def test_a_passage_that_the_model_cannot_read_refuses_its_file_only(library, server, files):
    """The next file may be shorter."""
    (files / "a long one.txt").write_text("word " * 200, encoding="utf-8")
    server.models["nomic-embed-text:latest"] = type(server.models["nomic-embed-text:latest"])(
        "nomic-embed-text:latest", 60, architecture="nomic-bert", capabilities=("embedding",)
    )
    use(library.config, server)
    results, error = add(library, files / "a long one.txt", files / "beekeeping.md")
    assert error is None
    assert [(result.status, result.reason) for result in results] == [("refused", "context_too_long"), ("added", None)]


def test_nothing_is_sent_beyond_this_device_without_consent(library, files):
    """Not while adding either; the hint is the command that allows it."""
    save_settings(
        library.config, Settings(embedding="ollama:x", embedding_options={"url": "http://192.168.77.1:11434"},
                                 local_only=True),
    )  # fmt: skip
    results, error = add(library, files / "recipes.txt")
    assert (results[0].status, results[0].reason, error.reason) == ("refused", "local_only", "local_only")
    assert library.documents() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("llama.cpp:starter", "no_vectors"), ("nobody:x", "backend_unknown"), ("word", "backend_unknown")],
)
def test_a_choice_that_is_none_is_an_error_with_a_way_back(stocked, name, reason):
    """Also where a person wrote it into the file."""
    save_settings(stocked.config, Settings(embedding=name))
    with pytest.raises(EmbeddingFailed) as caught:
        search(stocked, "broth")
    assert caught.value.reason == reason
    assert "docmind settings embedding default" in caught.value.hint


# Choosing ---------------------------------------------------------------------------------------------------------


def test_choosing_tries_the_model_and_says_what_follows(stocked, server, run):
    """Its speed, where text goes, that every question asks it, and that a new index is needed; then back."""
    server.vectors = vectors.another
    status, out, _ = run(
        "settings", "embedding", NOMIC, "--set", f"url={server.url}", "--set", "query_prefix=search_query: "
    )
    assert status == 0
    assert "384 numbers" in out
    assert "s a passage" in out
    assert "on this device" in out
    assert "in place of the chat model" in out
    assert out.splitlines()[-1] == "Run: docmind reindex"
    settings = read_settings(stocked.config)
    assert settings.embedding == NOMIC
    assert settings.embedding_options == {"url": server.url, "query_prefix": "search_query: "}
    assert texts_asked(server)[0] == embed.CANARY
    assert not any(passage.text in texts_asked(server) for passage in stocked.passages(range(1, 9)))  # it tries its own
    status, out, _ = run("settings")
    assert NOMIC in out
    assert "search_query: " in out
    assert run("reindex")[0] == 0
    status, out, _ = run("settings", "embedding", "default", "--json")
    row = json.loads(out)
    assert (row["embedding"], row["reindex_needed"]) == ("", True)
    assert read_settings(stocked.config) == Settings()


def test_choosing_the_same_model_elsewhere_needs_no_new_index(stocked, server, run):
    """The canary tells, not the name."""
    status, out, _ = run("settings", "embedding", NOMIC, "--set", f"url={server.url}", "--json")
    row = json.loads(out)
    assert (status, row["reindex_needed"], row["dimension"]) == (0, False, 384)
    assert row["seconds_per_passage"] >= 0
    assert search(stocked, "broth")[0].document == "recipes.txt"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Which model"),
        (["llama.cpp:x"], "ollama"),
        (["ollama:qwen3:4b"], "embedding model"),
        (["ollama:nothing"], "ollama pull nothing"),
        ([NOMIC, "--set", "prefix=x"], "query_prefix"),
        ([NOMIC, "--set", "prefix"], "query_prefix"),
    ],
)
def test_what_cannot_be_chosen_changes_nothing(config, server, run, arguments, words):
    """And the message says what to do."""
    given = ["--set", f"url={server.url}"] if arguments else []
    status, _, error = run("settings", "embedding", *arguments, *given)
    assert status == 1
    assert words in error
    assert "settings embedding default" not in error  # nothing has to be undone
    assert read_settings(config) == Settings()


def test_the_doctor_says_which_model_is_in_use_and_where_text_goes(stocked, server):
    """And what is wrong with it."""

    def check():
        return next(check for check in run_checks(stocked.config) if check.check == "embedding")

    use(stocked.config, server)
    assert check().ok
    assert NOMIC in check().detail
    assert "on this device" in check().detail
    server.vectors = vectors.another
    assert not check().ok
    assert "docmind reindex" in check().hint
    server.fault = "error 500"
    assert not check().ok
    assert NOMIC in check().detail


def test_a_model_is_asked_for_once_and_its_object_kept(stocked, server):
    """The server lists its models for the first question only."""
    use(stocked.config, server)
    for question in QUESTIONS:
        search(stocked, question)
    assert [path for path, _ in server.requests].count("/api/tags") == 1
    assert isinstance(choosing.load(stocked.config, choosing.chosen(stocked.config)), ServedEmbedding)


def test_many_searches_at_once_share_it(stocked, server):
    """From several threads, with the same results."""
    use(stocked.config, server)
    expected, results = found(stocked, QUESTIONS[:1]), []
    threads = [threading.Thread(target=lambda: results.append(found(stocked, QUESTIONS[:1]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(results) == 4)
    assert results == [expected] * 4
