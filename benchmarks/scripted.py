"""A backend for benchmarks that writes numbered words at a steady pace: "w1 w2 w3 …", no model behind it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

from docmind.backends import Detection, ModelInfo

LABEL = "scripted"
OPTIONS = ()
WORDS, WORDS_PER_SECOND = int(os.environ.get("SCRIPTED_WORDS", "2000")), float(os.environ.get("SCRIPTED_PACE", "200"))
WORDS_PER_SENTENCE = 20
MODEL = ModelInfo("words", 100_000, None, None, True)


def detect(_config):
    return Detection("scripted", LABEL, True, None, None, None, None, (MODEL,))


def models(_config):
    return (MODEL,)


def build(_config, _model, _options=None):
    return ScriptedLLM()


class ScriptedLLM:
    """What `docmind.answer` uses of a model."""

    metadata = SimpleNamespace(context_window=100_000)
    prefill_tokens_per_second = 1000.0
    is_loaded = True
    stopped = False

    def start(self):
        pass

    def warm_up(self):
        pass

    def stop(self):
        self.stopped = True

    def count_tokens(self, messages):
        return sum(len((message.content or "").split()) for message in messages)

    def count_tokens_many(self, texts):
        return [len(text.split()) for text in texts]

    async def astream_chat(self, _messages, **_arguments):
        return self._words()

    async def _words(self):
        started = time.time()
        # The page's clock is the same machine's: when the first word was due is all that is needed.
        Path(os.environ["SCRIPTED_STARTED"]).write_text(str(started))
        for number in range(1, WORDS + 1):
            wait = started + number / WORDS_PER_SECOND - time.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if self.stopped:
                break
            end = ". " if number % WORDS_PER_SENTENCE == 0 else " "
            if number % (6 * WORDS_PER_SENTENCE) == 0:
                end = ".\n\n"
            yield SimpleNamespace(delta=f"w{number}{end}", raw={"phase": "writing"})
        reason = "stopped" if self.stopped else "stop"
        yield SimpleNamespace(delta="", raw={"finish_reason": reason, "prompt_tokens": 100, "answer_tokens": WORDS})
