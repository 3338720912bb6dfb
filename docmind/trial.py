"""Trying a model on a tiny prompt: does it load, does it write, how fast. Knows no documents and no screen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docmind.backends import Progress
from docmind.backends import backend as find_backend
from docmind.background import follow

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from docmind.config import Config

PROMPT = "What is a harbour for? Answer in two short sentences."
MAX_TOKENS = 48  # enough to measure the speed of writing, and two seconds on a slow machine


@dataclass(frozen=True, slots=True)
class Trial:
    """What came back.

    Attributes:
        first_token_seconds: From the end of loading to the first word; None when there was none.
        tokens_per_second: Of writing; None for fewer than two tokens.
        context_window: Tokens the model really has, as it was loaded.
        load_seconds: None when it was in memory already.
        is_stopped: Whether it was stopped; then `text` is what was written so far.
    """

    text: str
    first_token_seconds: float | None
    tokens_per_second: float | None
    context_window: int
    load_seconds: float | None
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class TrialProgress(Progress):
    """Where a trial is: "waiting", "loading", "reading" or "writing"; and what the model has written so far."""

    text: str = ""


def try_model(
    config: Config,
    backend: str,
    model: str,
    options: Mapping[str, Any],
    stop: threading.Event,
    report: Callable[[TrialProgress], None] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Trial:
    """Let a model answer a tiny prompt. Blocks; loads the model when it is not loaded.

    Args:
        options: As `build` of the backend takes them.
        stop: Setting it ends the trial within about a second.
        report: Told how far it is, from this thread.
        arguments: Of the call, as a profile sets them; the answer is short whatever they say.

    Raises:
        DocMindError: The model cannot be used; message and hint say why and what to do.
    """
    llm: Any = find_backend(backend).build(config, model, options)
    from llama_index.core.llms import ChatMessage

    text, receipt = "", {}
    started = time.monotonic()
    loading_at: float | None = None
    ready_at: float | None = None
    first_at: float | None = None
    messages = [ChatMessage(role="user", content=PROMPT)]
    given = dict(arguments or {})
    given["max_tokens"] = min(MAX_TOKENS, given.get("max_tokens", MAX_TOKENS))
    stream = follow(lambda: llm.astream_chat(messages, **given), stop, llm.stop)
    try:
        for response in stream:
            receipt = dict(response.raw or {})
            phase = receipt.get("phase", "writing")
            now = time.monotonic()
            if phase == "loading":
                loading_at = loading_at or now
            elif phase != "waiting":
                ready_at = ready_at or now
            text += response.delta or ""
            if response.delta:
                first_at = first_at or now
            if report is not None:
                unit = "%" if phase == "loading" else "tokens"
                report(TrialProgress(phase, receipt.get("done", 0), receipt.get("total"), unit, text))
    finally:
        stream.close()
        llm.release()
    first = receipt.get("first_token_seconds")
    if first is None and first_at is not None:
        first = first_at - (ready_at or started)
    return Trial(
        text=text.strip(),
        first_token_seconds=first,
        tokens_per_second=receipt.get("tokens_per_second"),
        context_window=llm.metadata.context_window,
        load_seconds=ready_at - loading_at if ready_at is not None and loading_at is not None else None,
        is_stopped=receipt.get("finish_reason") == "stopped",
    )
