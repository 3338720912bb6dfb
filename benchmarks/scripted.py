"""A backend for benchmarks that writes numbered words at a steady pace: "w1 w2 w3 …", no model behind it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from docmind.backends import Detection, ModelInfo
from docmind.backends.streamed_llm import StreamedLLM, response

LABEL = "scripted"
OPTIONS = ()
WORDS, WORDS_PER_SECOND = int(os.environ.get("SCRIPTED_WORDS", "2000")), float(os.environ.get("SCRIPTED_PACE", "200"))
WORDS_PER_SENTENCE = 20
MODEL = ModelInfo("words", 100_000, None, None, True)


def detect(_config, _options=None):
    return Detection("scripted", LABEL, True, None, None, None, None, (MODEL,))


def models(_config, _options=None):
    return (MODEL,)


def build(_config, _model, _options=None):
    return ScriptedLLM(name="words", context_window=100_000)


class ScriptedLLM(StreamedLLM):
    """Words at a steady pace."""

    @property
    def prefill_tokens_per_second(self):
        return 1000.0

    def _arguments(self, given):
        return given

    async def _astream(self, prompt, arguments):
        started = time.time()
        # The page's clock is the same machine's: when the first word was due is all that is needed.
        Path(os.environ["SCRIPTED_STARTED"]).write_text(str(started))
        text = ""
        for number in range(1, WORDS + 1):
            wait = started + number / WORDS_PER_SECOND - time.time()
            if wait > 0:
                await asyncio.sleep(wait)
            end = ". " if number % WORDS_PER_SENTENCE == 0 else " "
            if number % (6 * WORDS_PER_SENTENCE) == 0:
                end = ".\n\n"
            text += f"w{number}{end}"
            yield response(text, f"w{number}{end}", phase="writing")
        yield response(text, phase="writing", finish_reason="stop", prompt_tokens=100, answer_tokens=WORDS)
