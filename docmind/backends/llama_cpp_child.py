"""The process that holds a llama.cpp model. Started by `child.py` as `python -m docmind.backends.llama_cpp_child`.

What it is asked and how it replies is told in `child_side.py`; the request that loads also has `batch`, `gpu_layers`,
`flash_attention` and `kv_type`, and an answer may have a `grammar`.
"""

from __future__ import annotations

import codecs
import collections
import ctypes
import time
from typing import TYPE_CHECKING, Any

from docmind.backends.child_side import (
    CHATML,
    Refused,
    control_pattern,
    harmless,
    lacks_memory,
    rendered,
    run,
)
from docmind.backends.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Callable

    from docmind.backends.child_side import Pipe

# The warm-up reads so many tokens, and the rest only where the first few were fast: it must not cost a slow
# machine or a large model many seconds.
_PROBE_TOKENS, _WARM_UP_TOKENS, _FAST_PROBE_SECONDS = 16, 128, 0.4
_WRITING_PROBES = 5
_KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # enum ggml_type in ggml.h


class Model:
    """A loaded GGUF: its template, its tokenizer, and answers, one at a time."""

    def __init__(self, request: dict[str, Any], pipe: Pipe, is_stopped: Callable[[int], bool]) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._pipe, self._is_stopped, self._native = pipe, is_stopped, llama_cpp
        self._log = _keep_native_log(llama_cpp)
        started = time.perf_counter()
        with _progress(llama_cpp, lambda fraction: pipe.send(request["id"], loading=round(fraction, 3))):
            self.llama = self._load(request)
        self._vocab = self.llama._model.vocab
        self.window = min(request["window"], self.llama.n_ctx())
        template = self.llama.metadata.get("tokenizer.chat_template")
        self._formatter: Any = Jinja2ChatFormatter(
            template=template or CHATML,
            eos_token=self._token_text(self.llama.token_eos()),
            bos_token=self._token_text(self.llama.token_bos()),
        )
        self._control = control_pattern(self._control_tokens())
        self._evaluate = self.llama.eval
        self.llama.eval = self._read
        self._running, self._evaluated, self._cached, self._to_read, self._read_at = 0, 0, 0, 0, 0.0
        # ggml calls this between two operations, from a native thread; True ends the computation.
        self._abort = llama_cpp.ggml_abort_callback(lambda _data: self._is_stopped(self._running))
        prefill = self._warm_up()
        self.ready = {
            "window": self.window,
            "trained_window": self.llama._model.n_ctx_train(),
            "has_template": template is not None,
            "writing_threads": self.writing_threads,
            "load_seconds": round(time.perf_counter() - started, 3),
            "prefill_tokens_per_second": prefill,
        }

    def _load(self, request: dict[str, Any]) -> Any:
        """The native model; what failed is told from llama.cpp's own log."""
        import jinja2

        try:
            return self._native.Llama(
                model_path=request["path"],
                n_ctx=request["window"],
                # n_batch is how long a stop can take while the prompt is read, where the abort callback does not
                # reach (a GPU), and how much finished work survives it.
                n_batch=request["batch"],
                n_ubatch=request["batch"],
                n_threads=request["threads"],
                n_threads_batch=request["threads"],
                n_gpu_layers=request["gpu_layers"],
                flash_attn=request["flash_attention"],
                type_k=_KV_TYPES[request["kv_type"]],
                type_v=_KV_TYPES[request["kv_type"]],
                verbose=False,
            )
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            reason = "out_of_memory" if lacks_memory("\n".join(self._log)) else "model_damaged"
            if reason == "model_damaged" and request["kv_type"] != "f16" and "context" in str(error):
                reason = "unsupported"  # the file was read; not every model can keep what it read quantized
            remedy = " Set kv_type to f16." if reason == "unsupported" else ""
            raise Refused(reason, f"{error}. {self._last_error()}{remedy}".strip()) from error
        except jinja2.TemplateError as error:
            raise Refused("template_failed", f"The model's chat template is broken: {error}") from error
        except MemoryError as error:
            raise Refused("out_of_memory", "Not enough memory for this model and window.") from error

    def _last_error(self) -> str:
        """What llama.cpp complained about: the cause where it names one, else the last line."""
        causes = [line for line in self._log if "error loading model" in line]
        return (causes or list(self._log) or [""])[-1][:300]

    def _warm_up(self) -> float:
        """Read a few tokens: finds out early whether this build runs on this machine, and how fast it reads."""
        some = self.llama.tokenize(b" the", add_bos=False)[:1] or [0]
        spent = 0.0
        done = 0
        for count in (_PROBE_TOKENS, _WARM_UP_TOKENS):
            if spent > _FAST_PROBE_SECONDS:
                break
            started = time.perf_counter()
            self.llama.eval(some * min(count, self.window // 2))
            spent, done = time.perf_counter() - started, min(count, self.window // 2)
        self._choose_writing_threads(some)
        self.llama.reset()
        return round(done / max(spent, 1e-6), 1)

    def _choose_writing_threads(self, some: list[int]) -> None:
        """Write with one thread where that is faster than with all.

        One token of a small model is too little work to share: on two cores the starter wrote 89 tokens/s with one
        thread and 73 with two, 76 and 30 while the machine was busy (medians; benchmarks/threads.py).
        """
        everyone = self.llama.n_threads
        fastest: tuple[float, int] | None = None
        for threads in {everyone, 1}:
            self.llama._ctx.set_n_threads(threads, everyone)
            self.llama.eval(some)  # the first one wakes the threads
            times = []
            for _ in range(_WRITING_PROBES):
                started = time.perf_counter()
                self.llama.eval(some)
                times.append(time.perf_counter() - started)
                if times[-1] > _FAST_PROBE_SECONDS / _WRITING_PROBES:
                    break  # a large model, or a busy machine: not worth the wait
            result = (sorted(times)[len(times) // 2], threads)
            fastest = min(fastest or result, result)
        self.writing_threads = fastest[1] if fastest else everyone
        self.llama._ctx.set_n_threads(self.writing_threads, everyone)

    # Text and tokens

    def _token_text(self, token: int) -> str:
        return str(self.llama._model.token_get_text(token)) if token != -1 else ""

    def _control_tokens(self) -> set[str]:
        """The texts of control tokens."""
        native = self._native
        return {
            (native.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", errors="ignore")
            for token in range(self.llama.n_vocab())
            if native.llama_vocab_is_control(self._vocab, token)
        }

    def tokens(self, request: dict[str, Any]) -> list[int]:
        """The tokens of the messages, with the template; or of a prompt as it stands, its control tokens included."""
        if "messages" in request:
            add_bos = False  # templates write the first token themselves
            text = rendered(
                request["messages"], lambda turns: str(self._formatter(messages=turns).prompt), self._control
            )
        else:
            text, add_bos = request["prompt"], self.llama._model.add_bos_token()
        try:
            return list(self.llama.tokenize(text.encode("utf-8", errors="replace"), add_bos=add_bos, special=True))
        except RuntimeError:
            # Its message holds the whole text, which belongs in no log.
            raise Refused("backend_failed", "llama.cpp could not split the prompt into tokens.") from None

    def count(self, request: dict[str, Any]) -> list[int]:
        """How many tokens the messages take, with the template, or each of the texts by itself."""
        if "messages" in request:
            return [len(self.tokens(request))]
        return [
            len(self.llama.tokenize(harmless(text, self._control).encode("utf-8", errors="replace"), add_bos=False))
            for text in request["texts"]
        ]

    def _piece(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character. (`Llama.detokenize` loses tokens over 32 bytes.)"""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._native.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    # Answering

    def _read(self, tokens: list[int]) -> None:
        """Takes the place of `Llama.eval`: the prompt batch by batch, so that progress shows and a stop is met."""
        if not self._to_read:
            self._evaluate(tokens)
            return
        total, batch = self._to_read, self.llama.n_batch
        cached = self._cached = total - len(tokens)
        # The callback takes Python's lock hundreds of times per token, so it is there only while the prompt is read.
        self._native.llama_set_abort_callback(self.llama.ctx, self._abort, None)
        try:
            for start in range(0, len(tokens), batch):
                if self._is_stopped(self._running):
                    raise InterruptedError
                self._evaluate(tokens[start : start + batch])
                self._evaluated += len(tokens[start : start + batch])
                self._pipe.send(self._running, read=cached + self._evaluated, of=total, cached=cached)
        finally:
            self._native.llama_set_abort_callback(self.llama.ctx, self._native.ggml_abort_callback(), None)
            self._to_read, self._read_at = 0, time.perf_counter()

    def _grammar(self, text: str | None) -> Any:
        """A grammar that llama.cpp accepts; a broken one would crash it later."""
        if text is None:
            return None
        from llama_cpp.llama_grammar import LlamaGrammar

        sampler = self._native.llama_sampler_init_grammar(self._vocab, text.encode("utf-8"), b"root")
        if not sampler:
            raise Refused("invalid_grammar", "llama.cpp cannot read the grammar.")
        self._native.llama_sampler_free(sampler)
        return LlamaGrammar.from_string(text, verbose=False)

    def answer(self, request: dict[str, Any]) -> None:
        """Write an answer, piece by piece; its last reply says how it ended and what it took."""
        started = time.perf_counter()
        tokens = self.tokens(request)
        room = self.window - len(tokens)
        if room < 1 or not tokens:
            raise Refused(
                "context_too_long" if tokens else "empty_prompt",
                f"The prompt has {len(tokens):,} tokens, the window holds {self.window:,}.",
                prompt_tokens=len(tokens),
                window=self.window,
            )
        grammar = self._grammar(request.get("grammar"))
        reading = self._read_at = time.perf_counter()
        limit = min(request["max_tokens"], room)
        self._running, self._evaluated, self._cached, self._to_read = request["id"], 0, 0, len(tokens)
        self._pipe.send(self._running, read=0, of=len(tokens), cached=0)
        self.llama.set_seed(self._native.LLAMA_DEFAULT_SEED if request.get("seed") is None else request["seed"])
        stream = self.llama.generate(
            tokens,
            temp=request["temperature"],
            top_p=request["top_p"],
            top_k=request["top_k"],
            min_p=request["min_p"],
            repeat_penalty=request["repeat_penalty"],
            grammar=grammar,
        )
        stops = StopStrings(request.get("stop") or [])
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        finish, written, first = "", 0, 0.0
        try:
            for token in stream:
                if not first:
                    first = time.perf_counter() - started
                if self._native.llama_vocab_is_eog(self._vocab, token):
                    finish = "stop"
                    break
                written += 1
                text, is_met = stops.feed(decoder.decode(self._piece(token)))
                if text:
                    self._pipe.send(self._running, text=text)
                finish = "stop" if is_met else "stopped" if self._is_stopped(self._running) else ""
                if finish or written >= limit:
                    finish = finish or "length"
                    break
        except (RuntimeError, InterruptedError) as error:
            if not self._is_stopped(self._running):
                self.llama.reset()
                raise Refused("backend_failed", f"llama.cpp failed: {error}") from error
            finish = "stopped"
            # Where the state cannot be cut back to the last whole batch, it has to go.
            if self.llama._is_recurrent or self.llama._is_hybrid:
                self.llama.reset()
        finally:
            stream.close()
        if stops.rest():
            self._pipe.send(self._running, text=stops.rest())
        seconds = time.perf_counter() - started
        self._pipe.send(
            self._running,
            end={
                "finish_reason": finish,
                "prompt_tokens": len(tokens),
                "cached_tokens": self._cached,
                "evaluated_tokens": self._evaluated,
                "answer_tokens": written,
                "prefill_seconds": round(self._read_at - reading, 4),
                "first_token_seconds": round(first, 4) if first else None,
                # The first token comes out of reading the prompt; the others are what writing speed means.
                "tokens_per_second": round((written - 1) / (seconds - first), 2) if written > 1 else None,
            },
        )


def _keep_native_log(native: Any) -> collections.deque[str]:
    """Collect what llama.cpp warns about; its own log goes to a standard error that is closed while loading."""
    lines: collections.deque[str] = collections.deque(maxlen=40)

    @native.llama_log_callback  # type: ignore[untyped-decorator]  # the native library has no types
    def keep(level: int, text: bytes, _data: object) -> None:
        # 3 and 4 in enum ggml_log_level of ggml.h: a warning, an error. (llama_cpp's own table is older.)
        if level in (3, 4):
            lines.append(text.decode("utf-8", errors="replace").strip())

    native.llama_log_set(keep, ctypes.c_void_p(0))
    native._docmind_log = keep  # kept alive as long as the library may call it
    return lines


class _progress:
    """While it lasts, `Llama` loads with a progress callback, which its constructor does not offer."""

    def __init__(self, native: Any, tell: Callable[[float], None]) -> None:
        self._native, self._make, self._last = native.llama_cpp, native.llama_cpp.llama_model_default_params, -1.0

        def told(fraction: float, _data: object) -> bool:
            # Hundreds of calls for a small model; twenty are what a progress bar can show.
            if fraction - self._last >= 0.05 or fraction >= 1.0:
                self._last = fraction
                tell(fraction)
            return True

        self._callback = native.llama_progress_callback(told)

    def __enter__(self) -> None:
        def with_progress() -> Any:
            parameters = self._make()
            parameters.progress_callback = self._callback
            return parameters

        self._native.llama_model_default_params = with_progress

    def __exit__(self, *_: object) -> None:
        self._native.llama_model_default_params = self._make


if __name__ == "__main__":
    run(Model, "llama-cpp-python")
