"""What our LM Studio adapter costs: words per second through it ÷ through LM Studio's own Python package.

    python benchmarks/through_lm_studio.py [--rounds 15] [--tokens 200] [--pace 200]

The stand-in server of the tests writes at its own pace, in a process of its own. `decode` is at that pace, which is
what a person sees of a fast model; `flat_out` lets the stand-in write as fast as it can, which shows what each word
costs us at most.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import in_turns
import lmstudio
from llama_index.core.llms import ChatMessage

from docmind.backends import lm_studio
from docmind.config import Config

QUESTION = "The committee met again on Tuesday and discussed the budget for the harbour."
MODEL = "qwen/qwen3-4b-2507"


def bare(model, tokens):
    """What `in_turns.measure` wants, read with the package alone."""
    started = time.perf_counter()
    stream = model.respond_stream(QUESTION, config={"maxTokens": tokens})
    times = [time.perf_counter() for fragment in stream if fragment.content]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def through_adapter(llm, tokens):
    """The same through `LMStudioLLM`."""
    started = time.perf_counter()
    messages = [ChatMessage(role="user", content=QUESTION)]
    times = [time.perf_counter() for r in llm.stream_chat(messages, max_tokens=tokens) if r.delta]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def measure(rounds, tokens, pace=None):
    """Both, taking turns."""
    with (
        in_turns.stand_in("lm_studio", pace) as url,
        tempfile.TemporaryDirectory() as home,
        lmstudio.Client(url.removeprefix("http://")) as client,
    ):
        llm = lm_studio.build(Config(home=Path(home)), MODEL, {"url": url})
        llm.warm_up()
        model = client.llm.model(MODEL)
        return in_turns.measure(lambda: bare(model, tokens), lambda: through_adapter(llm, tokens), rounds)


if __name__ == "__main__":
    in_turns.at_both_paces("lm_studio", __doc__.splitlines()[0], measure)
