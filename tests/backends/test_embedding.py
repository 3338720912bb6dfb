"""Models that make vectors behind a server: what is asked, what is believed, and what is made of a bad answer."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from servers import llama_server, ollama, openai_compatible, vectors

from docmind.backends import EMBEDDING_OPTIONS, backend, served_embedding
from docmind.errors import BackendError, BackendUnavailable, ConsentMissing, ContextTooLong, ModelNotFound

TEXTS = ["Bees swarm in May.", "Fry 6 onions in butter.", "Marta Oldenburg is the director."]


@pytest.fixture(params=["ollama", "openai-compatible"])
def peer(request, config):
    """A stand-in with an embedding model, and a way to build that."""
    if request.param == "ollama":
        serving, model, path = ollama.serve(), "nomic-embed-text", "/api/embed"
    else:
        models = ["qwen3-4b", "nomic-embed"]
        serving, model, path = openai_compatible.serve(models=models, window=2048), "nomic-embed", "/v1/embeddings"
    with serving as server:

        def build(name=model, **options):
            return backend(request.param).embedding(config, name, {"url": server.url, **options})

        def asked():
            return [body["input"] for at, body in server.requests if at == path]

        yield SimpleNamespace(server=server, build=build, asked=asked, kind=request.param)


def test_vectors_come_as_the_server_made_them(peer):
    """One for each text, in its order, by LlamaIndex's ways of asking, synchronous and not."""
    model = peer.build()
    expected = vectors.packaged(TEXTS)
    assert np.allclose(model.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
    assert np.allclose(model.get_query_embedding(TEXTS[1]), expected[1], atol=1e-2)
    assert np.allclose(model.get_text_embedding(TEXTS[2]), expected[2], atol=1e-2)

    async def ask():
        many = await model.aget_text_embedding_batch(TEXTS)
        return many, await model.aget_query_embedding(TEXTS[0]), await model.aget_text_embedding(TEXTS[0])

    many, question, text = asyncio.run(ask())
    assert np.allclose(many, expected, atol=1e-6)
    assert question == text
    assert "config" not in model.model_dump()


def test_many_texts_are_sent_in_batches(peer):
    """None twice, none left out."""
    peer.server.vectors = lambda texts: [[float(text), 1.0] for text in texts]
    numbers = [str(n) for n in range(40)]
    made = peer.build().get_text_embedding_batch(numbers)
    assert [vector[0] for vector in made] == list(range(40))
    assert [len(batch) for batch in peer.asked()] == [16, 16, 8]


def test_prefixes_are_those_that_were_given_and_no_others(peer):
    """Questions and passages have their own; by default none."""
    plain = peer.build()
    plain.get_query_embedding("a")
    plain.get_text_embedding("b")
    model = peer.build(query_prefix="search_query: ", passage_prefix="search_document: ")
    model.get_query_embedding("a")
    model.get_text_embedding_batch(["b", "c\ud800"])
    assert peer.asked() == [["a"], ["b"], ["search_query: a"], ["search_document: b", "search_document: c?"]]


@pytest.mark.parametrize("fault", [*vectors.FAULTS, "half a JSON", "a page"])
def test_what_is_no_vector_for_each_text_is_not_taken(peer, fault):
    """Too few, of different lengths, no finite numbers, no numbers, no JSON."""
    peer.server.vectors = lambda texts: [[0.25, 0.5, -1.0] for _ in texts]
    model = peer.build()
    peer.server.fault = fault
    with pytest.raises(BackendError) as caught:
        model.get_text_embedding_batch(TEXTS)
    assert caught.value.reason == "bad_response"
    assert caught.value.hint


def test_the_real_server_of_llama_cpp_makes_vectors(config):
    """The wire format as it is: each text has its own vector, and one that is too long is refused, not cut."""
    with llama_server.serve(window=512, embeddings=True) as url:
        model = backend("openai-compatible").embedding(config, "starter", {"url": url})
        together = np.asarray(model.get_text_embedding_batch(TEXTS))
        apart = np.asarray([model.get_query_embedding(text) for text in TEXTS])
        assert together.shape == (3, 576)
        assert np.argmax(together @ apart.T, axis=1).tolist() == [0, 1, 2]
        with pytest.raises(ContextTooLong) as caught:
            model.get_text_embedding("word " * 300)
        assert "-ub 2048" in caught.value.hint


@pytest.mark.parametrize(("fault", "is_right"), [("no order", True), ("twice the first", False)])
def test_vectors_belong_to_their_texts_whatever_order_they_come_in(config, fault, is_right):
    """By their index, which must be there once for each."""
    with openai_compatible.serve(models=["embed"]) as server:
        server.vectors = lambda texts: [[float(len(text)), 1.0] for text in texts]
        server.fault = fault
        model = backend("openai-compatible").embedding(config, "embed", {"url": server.url})
        if is_right:
            assert model.get_text_embedding_batch(["a", "bb", "ccc"]) == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
        else:
            with pytest.raises(BackendError, match="one for each"):
                model.get_text_embedding_batch(["a", "bb", "ccc"])


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        ("error 500", {"backend_failed", "server_failed"}),
        ("half an answer", {"unreachable"}),
        ("reset", {"unreachable"}),
        ("silence", {"stalled"}),
    ],
)
def test_a_server_that_fails_is_an_error_with_a_remedy(peer, fault, reasons, monkeypatch):
    """Each with its reason; nothing is asked a second time."""
    peer.server.vectors = lambda texts: [[0.25, 0.5, -1.0] for _ in texts]
    model = peer.build()
    peer.server.fault = fault
    monkeypatch.setattr(served_embedding, "BATCH_SECONDS", 1.0 if fault == "silence" else 60.0)
    with pytest.raises(BackendError) as caught:
        model.get_text_embedding_batch(TEXTS)
    assert caught.value.reason in reasons
    assert caught.value.hint
    assert len(peer.asked()) == 1


def test_a_text_that_is_too_long_is_refused_and_not_cut(peer):
    """The hint is about the model, not about the chat's window."""
    with pytest.raises(ContextTooLong) as caught:
        peer.build().get_text_embedding_batch(["short", "long " * 3000])
    assert ("512" if peer.kind == "ollama" else "-ub 2048") in caught.value.hint


def test_a_model_that_is_not_there_is_said_to_be_missing(peer):
    """When it is chosen, and when it has vanished since."""
    with pytest.raises(ModelNotFound):
        peer.build("nothing")
    model = peer.build()
    names = [name for name in peer.server.models if "embed" in name]
    for name in names:
        peer.server.models.remove(name) if isinstance(peer.server.models, list) else peer.server.models.pop(name)
    with pytest.raises(ModelNotFound):
        model.get_query_embedding("a")


def test_a_chat_model_is_no_choice(peer):
    """Ollama says what its models are for; another server refuses when it is asked."""
    if peer.kind == "ollama":
        with pytest.raises(BackendError) as caught:
            peer.build("qwen3:4b")
        assert caught.value.reason == "no_vectors"
    else:
        with pytest.raises(BackendError) as caught:
            peer.build("qwen3-4b").get_query_embedding("a")
        assert caught.value.reason == "unsupported"
        assert "--embeddings" in caught.value.hint


def test_a_model_that_ollama_says_nothing_about_is_asked_for_vectors(config):
    """The server refuses by itself what cannot; what was not told is not held against a model."""
    with ollama.serve() as server:
        server.instead["/api/show"] = (500, b"busy")
        embedder = backend("ollama").embedding(config, "nomic-embed-text", {"url": server.url})
        assert len(embedder.get_query_embedding("a")) == 384
        chatting = backend("ollama").embedding(config, "qwen3:4b", {"url": server.url})
        with pytest.raises(BackendError) as caught:
            chatting.get_query_embedding("a")
        assert caught.value.reason == "no_vectors"


def test_a_server_that_has_gone_is_said_to_be(peer, config):
    """With how to start it, for the model that is wanted."""
    module = ollama if peer.kind == "ollama" else openai_compatible
    with module.serve(**({} if peer.kind == "ollama" else {"models": ["nomic-embed-text"]})) as server:
        model = backend(peer.kind).embedding(config, "nomic-embed-text", {"url": server.url})
    with pytest.raises(BackendUnavailable) as caught:
        model.get_query_embedding("a")
    assert caught.value.reason == "unreachable"
    assert "nomic-embed-text" in caught.value.hint or server.url in caught.value.hint


def test_a_key_that_is_wanted_is_an_error(peer):
    """Not a missing vector."""
    model = peer.build()
    peer.server.key = "secret"
    with pytest.raises(BackendError) as caught:
        model.get_query_embedding("a")
    assert caught.value.reason == "key_rejected"


@pytest.mark.parametrize("kind", ["ollama", "openai-compatible"])
def test_nothing_is_sent_beyond_this_device_without_consent(config, kind):
    """The texts are documents: the address has to be allowed, and the hint says with which command."""
    module = backend(kind)
    if kind == "ollama":
        from docmind.backends.ollama_embedding import OllamaEmbedding

        model = OllamaEmbedding(model_name="x", config=config, url="http://192.168.77.1:11434")
    else:
        from docmind.backends.openai_compatible_embedding import OpenAICompatibleEmbedding
        from docmind.backends.openai_compatible_presets import OTHER

        url = "http://192.168.77.1:11434/v1"
        model = OpenAICompatibleEmbedding(model_name="x", config=config, url=url, preset=OTHER)
    assert module.embedding
    with pytest.raises(ConsentMissing) as caught:
        model.get_text_embedding("a passage")
    assert caught.value.hint == "Allow it. Run: docmind settings allow http://192.168.77.1:11434"


def test_documents_are_not_sent_to_whatever_listens_on_a_usual_port(config, monkeypatch):
    """The address of a server of no fixed place has to be said."""
    monkeypatch.delenv("OPENAI_COMPATIBLE_URL")
    with pytest.raises(BackendError) as caught:
        backend("openai-compatible").embedding(config, "embed", {})
    assert caught.value.reason == "invalid_option"
    assert "url=" in caught.value.hint


@pytest.mark.parametrize("kind", ["ollama", "openai-compatible"])
def test_an_unknown_option_is_refused(config, kind):
    """With those there are."""
    with pytest.raises(BackendError) as caught:
        backend(kind).embedding(config, "embed", {"query_prefx": "x"})
    assert caught.value.reason == "unknown_option"
    assert "query_prefix" in caught.value.hint


def test_the_guide_has_every_option():
    """Its table is the code's."""
    guide = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `(\w+)` \| ([^`|]+) \|$", guide, re.MULTILINE))
    assert written == {option.name: option.description for option in EMBEDDING_OPTIONS}
