"""A backend that writes what a test gave it, call by call, and keeps what it was asked. No model is behind it.

`SCRIPT` has one entry for each call to come: the text, or an error to raise, or a list of both (texts in pieces, then
how it ends). When it is empty the function of the model in `WRITERS` gives the entry; without one it says nothing more.
"""

from __future__ import annotations

import asyncio

from docmind.backends import Detection, ModelInfo, Option, checked_options
from docmind.backends.streamed_llm import StreamedLLM, plain_messages, response

LABEL = "Scripted"
OPTIONS = (
    Option("context_window", int, None, "tokens", "What fits.", 256, 1 << 20),
    Option("max_tokens", int, 512, "tokens", "The longest answer.", 1, 1 << 20, per_call=True),
    Option("temperature", float, None, "", "Heat.", 0, 5, per_call=True),
    Option("stop", list, None, "texts", "Ends.", per_call=True),
)
SCRIPT: list = []
WRITERS: dict = {}  # by the name of a model: a function that gives an entry
PROMPTS: list[list[dict[str, str]]] = []  # the messages of each call
ARGUMENTS: list[dict] = []
MODELS = {"script": 4_000_000_000, "other": 4_000_000_000, "tiny": 100_000_000}
PIECE = 3  # characters: markers and tags come in pieces


def reset():
    """Forgets what was asked and what was to be said."""
    SCRIPT.clear()
    WRITERS.clear()
    PROMPTS.clear()
    ARGUMENTS.clear()


def models(config, options=None):
    """Always there."""
    return tuple(ModelInfo(name, 8192, size, None, True) for name, size in MODELS.items())


def detect(config, options=None):
    """Always there."""
    return Detection("scripted", LABEL, True, None, None, None, None, models(config))


def build(config, model, options=None):
    """A model that reads the script."""
    given = checked_options(OPTIONS, options or {})
    return ScriptedLLM(name=model, context_window=given.get("context_window", 8192))


class ScriptedLLM(StreamedLLM):
    """Says the next entry of the script."""

    def _arguments(self, given):
        return checked_options([option for option in OPTIONS if option.per_call], given)

    async def _astream(self, prompt, arguments):
        messages = plain_messages(prompt)
        PROMPTS.append(messages)
        ARGUMENTS.append(arguments)
        entry = SCRIPT.pop(0) if SCRIPT else WRITERS.get(self.name, str)()
        said, reason = "", "stop"
        for part in entry if isinstance(entry, list) else [entry]:
            if isinstance(part, Exception):
                raise part
            if part in ("length", "no end", "for ever"):
                reason = part
                break
            # As a model's server would: nothing from a stop string on.
            ends = [part.index(stop) for stop in arguments.get("stop") or [] if stop in part]
            part = part[: min(ends)] if ends else part
            for start in range(0, len(part), PIECE):
                said += part[start : start + PIECE]
                yield response(said, part[start : start + PIECE], phase="writing")
                await asyncio.sleep(0)
        while reason == "for ever":
            await asyncio.sleep(0.01)
        if reason != "no end":
            yield response(
                said, phase="writing", finish_reason=reason, prompt_tokens=self.count_tokens(prompt),
                answer_tokens=len(said) // 4,
            )  # fmt: skip
