"""What every backend must do, asked of each in turn. A new backend is one entry in `PEERS` (peers.py)."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading

import pytest
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.llms import ChatMessage
from peers import PATIENCE, PEERS, ticks_at_each_word
from servers import clouds

from docmind.backends import REGISTRY, backend
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound

pytestmark = pytest.mark.usefixtures("end_models")

STORY = "Write a very long story about a sailor who never comes home."
FOR_MINUTES = 7000  # tokens: longer than anything here waits
COUNT = "Count: one, two, three, four, five, six, seven."


@pytest.fixture(
    scope="module", params=[name for name in REGISTRY if name not in clouds.FORMATS or clouds.is_installed(name)]
)
def name(request):
    """A backend's name. A cloud is an extra; test_clouds.py names those that are not installed."""
    return request.param


@pytest.fixture(scope="module")
def peer(name, config):
    """A backend with what it talks to."""
    if name not in PEERS:
        pytest.fail(
            f"The backend '{name}' is not tried by the conformance suite. Add an entry to PEERS in "
            "tests/backends/peers.py (docs/add-a-backend.md, step 3)."
        )
    with PEERS[name](config) as found:
        yield found


def wrote(responses):
    """The responses with text."""
    return [response for response in responses if response.delta]


# What an answer is


def test_deltas_add_up_to_the_content_and_the_content_only_grows(peer, ask):
    """Every response repeats what came before it."""
    responses = list(peer.llm.stream_chat(ask(COUNT), max_tokens=16))
    text = ""
    for response in responses:
        text += response.delta
        assert response.message.content == text
    assert len(wrote(responses)) > 5


def test_only_the_last_response_says_how_it_ended(peer, ask):
    """With the figures of the call."""
    responses = list(peer.llm.stream_chat(ask(COUNT), max_tokens=5))
    assert ["finish_reason" in response.raw for response in responses] == [False] * (len(responses) - 1) + [True]
    last = responses[-1].raw
    assert last["finish_reason"] == "length"
    assert last["answer_tokens"] == 5
    assert last["prompt_tokens"] > 0
    assert last["counted_tokens"] > 0
    assert last["first_token_seconds"] >= 0
    assert last["context_window"] == peer.llm.metadata.context_window
    phases = list(dict.fromkeys(response.raw["phase"] for response in responses))
    assert set(phases) <= {"waiting", "loading", "reading", "thinking", "writing"}
    assert phases[-1] == "writing"


def test_all_ways_to_call_give_the_same(peer, ask):
    """Chat and complete, at once and streamed, synchronous and not."""

    async def asynchronously():
        chat = await peer.llm.achat(ask(COUNT), max_tokens=8)
        complete = await peer.llm.acomplete(COUNT, max_tokens=8)
        streamed = [r async for r in await peer.llm.astream_complete(COUNT, max_tokens=8)]
        return [chat.message.content, complete.text, streamed[-1].text]

    texts = [
        peer.llm.chat(ask(COUNT), max_tokens=8).message.content,
        peer.llm.complete(COUNT, max_tokens=8).text,
        list(peer.llm.stream_complete(COUNT, max_tokens=8))[-1].text,
        *asyncio.run(asynchronously()),
    ]
    assert texts[0]
    assert len(set(texts)) == 1


def test_an_answer_ends_in_front_of_a_stop_string_of_the_call(peer, ask):
    """The agent depends on it."""
    free = peer.llm.chat(ask(COUNT), max_tokens=16).message.content
    stop = free[8:14]
    stopped = peer.llm.chat(ask(COUNT), max_tokens=16, stop=[stop, "never"])
    assert stopped.message.content == free[: free.index(stop)]
    assert stopped.raw["finish_reason"] == "stop"


def test_two_calls_at_once_do_not_mix(peer, ask):
    """Each gets what it gets alone."""
    prompts = ["Say: red green blue.", "Say: one two three."]
    alone = [peer.llm.chat(ask(prompt), max_tokens=6).message.content for prompt in prompts]
    results = [queue.SimpleQueue() for _ in prompts]

    def call(prompt, result):
        result.put(peer.llm.chat(ask(prompt), max_tokens=6).message.content)

    for prompt, result in zip(prompts, results, strict=True):
        threading.Thread(target=call, args=(prompt, result), daemon=True).start()
    assert [result.get(timeout=PATIENCE) for result in results] == alone


def test_the_event_loop_goes_on_while_an_answer_is_written(peer, ask):
    """A ticker on the same loop keeps ticking from token to token."""
    seen = asyncio.run(ticks_at_each_word(peer.llm, ask(STORY)))
    assert len(seen) > 10
    assert len(set(seen)) > len(seen) / 2


# Stopping


def test_a_stop_reaches_what_computes_and_says_so(peer, ask):
    """What was written stays."""
    responses = []
    for response in peer.llm.stream_chat(ask(STORY), max_tokens=FOR_MINUTES):
        responses.append(response)
        if len(wrote(responses)) == 5:
            peer.llm.stop()
    assert responses[-1].raw["finish_reason"] == "stopped"
    assert responses[-1].message.content.startswith("".join(response.delta for response in wrote(responses)[:5]))
    peer.wait_until_idle()


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_an_answer_stops_what_computes(peer, ask, how):
    """Nobody pays for words that nobody reads."""
    if how == "close":
        stream = peer.llm.stream_chat(ask(STORY), max_tokens=FOR_MINUTES)
        next(response for response in stream if response.delta)
        assert peer.working()
        stream.close()
    else:

        async def run():
            async def consume():
                async for response in await peer.llm.astream_chat(ask(STORY), max_tokens=FOR_MINUTES):
                    if response.delta:
                        begun.set()

            begun = asyncio.Event()
            task = asyncio.create_task(consume())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())
    peer.wait_until_idle()
    assert peer.llm.chat(ask("Hi"), max_tokens=2).message.content


def test_a_stop_before_any_call_does_nothing(peer, ask):
    """And does not stop the next."""
    peer.llm.stop()
    assert peer.llm.chat(ask("Hi"), max_tokens=2).raw["finish_reason"] == "length"


# What is said about a model


def test_what_the_metadata_says_is_true(peer, name, ask, config):
    """The window stated is the window used, the name is the one that is listed."""
    peer.llm.chat(ask("Hi"), max_tokens=1)
    assert peer.llm.metadata.context_window == peer.window() == peer.options["context_window"]
    assert peer.llm.metadata.model_name == peer.model
    assert peer.llm.metadata.is_chat_model
    assert peer.model in [model.name for model in backend(name).models(config, peer.options)]
    assert peer.llm.is_loaded


def test_tokens_are_counted(peer, ask):
    """More text is more tokens; a message has some of its own."""
    counts = peer.llm.count_tokens_many(["", "one", "one two three", "one two three four five six " * 50])
    assert counts == sorted(counts)
    assert counts[-1] > counts[-2] > counts[1] > 0
    assert peer.llm.count_tokens("one two three") == counts[2]
    assert peer.llm.count_tokens(ask("one two three")) > counts[2]


def test_warming_up_can_be_repeated(peer):
    """And says what it knows."""
    peer.llm.start()
    assert isinstance(peer.llm.warm_up(), dict)
    assert peer.llm.is_loaded


# What goes wrong


def test_an_argument_nobody_knows_is_refused_with_the_nearest(peer, ask):
    """Nothing is dropped silently, in a call or in the options."""
    with pytest.raises(BackendError) as caught:
        peer.llm.stream_chat(ask("Hi"), max_token=3)
    assert caught.value.reason == "unknown_option"
    assert "'max_tokens'" in caught.value.hint


def test_an_option_nobody_knows_is_refused_with_the_nearest(peer, name, config):
    """The same, where a profile is read."""
    with pytest.raises(BackendError) as caught:
        backend(name).build(config, peer.model, {**peer.options, "context_windows": 1024})
    assert caught.value.reason == "unknown_option"
    assert "'context_window'" in caught.value.hint


def test_a_model_that_is_not_there_names_those_that_are(peer, name, config):
    """The error says what to choose."""
    with pytest.raises(ModelNotFound) as caught:
        backend(name).build(config, "no-such-model", peer.options)
    assert caught.value.reason == "model_missing"
    assert peer.model in caught.value.hint


def test_a_missing_package_names_the_command(peer, name, monkeypatch, config):
    """As it is for somebody who has not installed the extra."""
    if peer.package is None:
        pytest.skip("this backend needs no package")
    monkeypatch.setitem(sys.modules, peer.package, None)
    with pytest.raises(BackendUnavailable) as caught:
        backend(name).build(config, peer.model, peer.options)
    assert caught.value.reason == "not_installed"
    assert "pip install" in caught.value.hint


def test_a_prompt_over_the_window_is_refused(peer, ask):
    """Never cut in silence; the next call works."""
    with pytest.raises(BackendError) as caught:
        peer.llm.chat(ask("one two three four five six seven eight. " * 2000))
    assert caught.value.reason == "context_too_long"
    assert f"{peer.options['context_window']:,}" in str(caught.value)
    assert caught.value.hint
    assert peer.llm.chat(ask("Hi"), max_tokens=2).message.content


def test_a_picture_is_refused(peer):
    """Instead of being left out silently."""
    with pytest.raises(BackendError) as caught:
        peer.llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])])
    assert caught.value.reason == "unsupported"


def test_a_stream_without_its_end_is_no_answer(peer, ask):
    """However much was written."""
    if peer.break_off is None:
        pytest.skip("this backend is never cut off")
    stream = peer.llm.stream_chat(ask(STORY), max_tokens=FOR_MINUTES)
    next(response for response in stream if response.delta)
    peer.break_off()
    with pytest.raises(BackendError) as caught:
        list(stream)
    peer.mend()
    assert caught.value.hint
    assert caught.value.reason in ("no_end_marker", "crashed")
    assert peer.llm.chat(ask("Hi"), max_tokens=2).message.content


def test_a_wrong_key_is_told_from_a_dead_server(peer, ask):
    """The remedy is another."""
    if peer.reject_key is None:
        pytest.skip("this backend has no keys")
    with peer.reject_key(), pytest.raises(BackendError) as caught:
        peer.llm.chat(ask("Hi"))
    assert caught.value.reason == "key_rejected"
    assert caught.value.hint


def test_a_server_that_is_not_there_is_an_absence_with_a_remedy(peer, name, ask, config):
    """For the list, for building, and for a call."""
    if peer.down is None:
        pytest.skip("this backend starts what it needs by itself")
    with peer.down() as (gone, options):
        found = backend(name).detect(config, options)
        assert (found.available, found.reason, found.models) == (False, "unreachable", ())
        assert found.hint
        for attempt in (
            lambda: backend(name).build(config, peer.model, options),
            lambda: gone.chat(ask("Hi")),
            gone.warm_up,
        ):
            with pytest.raises(BackendUnavailable) as caught:
                attempt()
            assert caught.value.reason == "unreachable"
            assert caught.value.hint


def test_importing_the_module_loads_neither_llama_index_nor_a_client(peer, name):
    """The first paint of the app must not wait for them."""
    unwanted = ["llama_index", "pydantic", "httpx", "numpy", peer.package]
    code = (
        f"import sys, docmind.backends as b; b.backend({name!r})\n"
        f"print([name for name in {unwanted!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
