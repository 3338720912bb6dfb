"""The process that holds a Hugging Face model. Started by `child.py` as `-m docmind.backends.transformers_child`.

What it is asked and how it replies is told in `child_side.py`; the request that loads also has `device` and `dtype`.
It reads safetensors of one local folder: no network, no pickles, no code of the folder.
"""

from __future__ import annotations

import os
import threading
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
    from collections.abc import Callable, Iterator

    from docmind.backends.child_side import Pipe

# Read at once: what a stop may cost, and what it keeps. A GPU is idle most of the time with less.
_BATCH_TOKENS, _GPU_BATCH_TOKENS = 128, 512
# The warm-up reads so many tokens, and the rest only where the first few were fast.
_PROBE_TOKENS, _WARM_UP_TOKENS, _FAST_PROBE_SECONDS = 16, 128, 0.4
_CHARACTER_TOKENS = 4  # of the longest character: no token is shorter than a byte
# The ends of a turn in well-known formats, for folders that name only the end of a text. llama.cpp looks for the same
# names (llama-vocab.cpp, "special_eog_ids").
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>", "<|return|>")


class Model:
    """A loaded folder: its template, its tokenizer, and answers, one at a time."""

    def __init__(self, request: dict[str, Any], pipe: Pipe, is_stopped: Callable[[int], bool]) -> None:
        # Also what the person's environment says: the hub's client asks the network otherwise.
        os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
        self._pipe, self._is_stopped = pipe, is_stopped
        started = time.perf_counter()
        pipe.send(request["id"], loading=0.0)  # importing takes seconds
        import torch
        import transformers

        self._torch: Any = torch
        self._library: Any = transformers
        self._library.logging.set_verbosity_error()
        self._library.logging.disable_progress_bar()
        torch.set_num_threads(request["threads"])
        self._device = self._chosen_device(request["device"])
        self._batch = _BATCH_TOKENS if self._device == "cpu" else _GPU_BATCH_TOKENS
        self._library.logging.set_tqdm_hook(self._progress(request["id"]))
        self._load(request["path"], request["dtype"])
        self.window: int = request["window"]
        added = self._tokenizer.added_tokens_decoder.values()
        self._control = control_pattern(
            {str(token.content) for token in added if token.special or str(token.content).startswith("<")}
        )
        self._tokenizer_lock = threading.Lock()  # counting goes on while an answer is begun
        self.ends = self._end_tokens()
        # What the folder says about sampling is not taken over: the person's options say it all.
        self._model.generation_config = self._library.GenerationConfig()
        self._model.register_forward_pre_hook(self._before)
        self._model.register_forward_hook(self._after, with_kwargs=True)
        self._running, self._to_read, self._new, self._evaluated, self._read_at = 0, 0, 0, 0, 0.0
        self._forget()
        prefill = self._warm_up()
        self.ready = {
            "window": self.window,
            "has_template": self._tokenizer.chat_template is not None,
            "device": self._device,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "load_seconds": round(time.perf_counter() - started, 3),
            "prefill_tokens_per_second": prefill,
        }

    # Loading

    def _chosen_device(self, wanted: str) -> str:
        there = {
            "cuda": self._torch.cuda.is_available(),
            "mps": self._torch.backends.mps.is_available(),
            "cpu": True,
        }
        if wanted == "auto":
            return next(device for device, is_there in there.items() if is_there)
        if not there[wanted]:
            raise Refused("invalid_option", f"The installed torch finds no device '{wanted}' here.")
        return wanted

    def _load(self, path: str, dtype: str) -> None:
        """The tokenizer and the model of a folder; whatever is wrong with it is told as a reason."""
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        careful = {"local_files_only": True, "trust_remote_code": False}
        # What the library does with nonsense in a folder depends on the architecture.
        damages = (SafetensorError, StrictDataclassError, OSError, ValueError, TypeError, LookupError, AttributeError,
                   ArithmeticError, AssertionError, RecursionError, RuntimeError)  # fmt: skip
        try:
            config = self._library.AutoConfig.from_pretrained(path, **careful)
            # A folder may name a kernel of the hub here, which is code: transformers chooses by itself.
            config._attn_implementation = None
            self._tokenizer: Any = self._library.AutoTokenizer.from_pretrained(path, **careful)
            self._model, loading = self._library.AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=self._chosen_dtype(path, dtype), use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True, **careful,
            )  # fmt: skip
            self._model = self._model.to(self._device).eval()
        except MemoryError as error:
            raise Refused("out_of_memory", "Not enough memory for this model.") from error
        except ImportError as error:  # a tokenizer or a kind of quantization that needs another package
            raise Refused("unsupported", _first_line(error)) from error
        except damages as error:
            reason = "out_of_memory" if lacks_memory(f"{type(error).__name__} {error}") else "model_damaged"
            raise Refused(reason, _first_line(error)) from error
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise Refused("model_damaged", _first_line(error)) from error  # so the package tokenizers complains
        # Weights that are not in the files are made up, with no more than a warning.
        if missing := sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])]):
            raise Refused("model_damaged", f"{len(missing)} weights are missing or of another shape ({missing[0]}).")

    def _chosen_dtype(self, path: str, wanted: str) -> Any:
        """The type of the numbers: as in the folder, or float32 on a processor that is slow with shorter ones.

        Where it has no instructions for them the starter read 170 tokens/s in float32, 57 in float16 and 44 in
        bfloat16; it wrote equally fast in all three.
        """
        import psutil

        if wanted != "auto":
            return getattr(self._torch, wanted)
        # Private in torch 2.6 to 2.13, so asked for by name; a torch without them gets float32, right everywhere.
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        checks = [getattr(self._torch.cpu, name, None) for name in names]
        if self._device != "cpu" or any(check() for check in checks if check is not None):
            return "auto"
        with os.scandir(path) as files:
            size = sum(file.stat().st_size for file in files if file.name.endswith(".safetensors"))
        return self._torch.float32 if 3 * size < psutil.virtual_memory().available else "auto"

    def _progress(self, request_id: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
        """A hook for the library's progress bars: the one over the weights is told to the parent."""

        def hook(make: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if arguments and named.get("desc") == "Loading weights":
                return self._counted(arguments[0], request_id)
            return make(*arguments, **named)

        return hook

    def _counted(self, items: Any, request_id: int) -> Iterator[Any]:
        for done, item in enumerate(items):
            if 20 * done // len(items) != 20 * (done - 1) // len(items):  # as many steps as a bar can show
                self._pipe.send(request_id, loading=round(done / len(items), 3))
            yield item

    def _end_tokens(self) -> list[int]:
        """The tokens that end an answer."""
        named = [self._model.generation_config.eos_token_id, self._tokenizer.eos_token_id]
        ends = {end for one in named for end in (one if isinstance(one, list) else [one]) if isinstance(end, int)}
        added = {str(token.content): number for number, token in self._tokenizer.added_tokens_decoder.items()}
        return sorted(ends | {added[text] for text in _ENDS if text in added})

    def _warm_up(self) -> float:
        """Read a few tokens: finds out how fast, and whether it fits into memory."""
        spent, done = 0.0, 0
        for count in (_PROBE_TOKENS, _WARM_UP_TOKENS):
            if spent > _FAST_PROBE_SECONDS:
                break
            done = min(count, self.window // 2)
            tokens = self._torch.zeros((1, done), dtype=self._torch.long, device=self._device)
            started = time.perf_counter()
            try:
                with self._torch.no_grad():
                    # Waits for the device.
                    self._model(input_ids=tokens).logits[0, -1, 0].item()
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                reason = "out_of_memory" if lacks_memory(str(error)) else "model_damaged"
                raise Refused(reason, _first_line(error)) from error
            spent = time.perf_counter() - started
        return round(done / max(spent, 1e-6), 1)

    # Text and tokens

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False,
                chat_template=None if self._tokenizer.chat_template else CHATML,
            )
        )  # fmt: skip

    def _encoded(self, text: str, *, with_first: bool = False) -> list[int]:
        """The tokens of a text; `with_first` with those that begin and end one."""
        clean = text.encode("utf-8", errors="replace").decode("utf-8")  # half a surrogate is no text
        with self._tokenizer_lock:
            return list(self._tokenizer(clean, add_special_tokens=with_first, verbose=False)["input_ids"])

    def tokens(self, request: dict[str, Any]) -> list[int]:
        """The tokens of the messages, with the template; or of a prompt as it stands, its control tokens included."""
        if "messages" in request:
            return self._encoded(rendered(request["messages"], self._render, self._control))
        return self._encoded(request["prompt"], with_first=True)

    def count(self, request: dict[str, Any]) -> list[int]:
        """How many tokens the messages take, with the template, or each of the texts by itself."""
        if "messages" in request:
            return [len(self.tokens(request))]
        return [len(self._encoded(harmless(text, self._control))) for text in request["texts"]]

    def decoded(self, tokens: list[int]) -> str:
        """The text of tokens; of half a character a replacement character."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # Answering

    def _before(self, *_: object) -> None:
        """Before each batch of the prompt and each word: leave when stopped."""
        if self._running and self._is_stopped(self._running):
            raise InterruptedError

    def _after(self, _module: object, _arguments: object, named: dict[str, Any], _output: object) -> None:
        """After each batch of the prompt: say how far it is."""
        if self._to_read:
            self._evaluated += named["input_ids"].shape[1]
            cached = self._to_read - self._new
            self._pipe.send(self._running, read=cached + self._evaluated, of=self._to_read, cached=cached)
            if self._evaluated >= self._new:
                self._to_read, self._read_at = 0, time.perf_counter()

    def _forget(self) -> None:
        """Begin with nothing read."""
        text_config = self._model.config.get_text_config(decoder=True)
        # Some old and some recurrent architectures have a memory of their own kind: the library makes it.
        is_usual = self._model._supports_default_dynamic_cache() and "mamba" not in type(self._model).__name__.lower()
        self._cache: Any = self._library.DynamicCache(config=text_config) if is_usual else None
        layers = self._cache.layers if self._cache is not None else []
        # Others keep a window of what was read, or a state that cannot be taken back.
        self._can_cut = bool(layers) and all(type(layer) is self._library.DynamicLayer for layer in layers)
        self._held: list[int] = []  # the tokens in the cache

    def _keep_prefix(self, tokens: list[int]) -> int:
        """Cut the cache back to what the prompt begins with; gives its number of tokens.

        At least one token is read anew, since the first word comes out of reading.
        """
        if not self._can_cut:
            self._forget()
            return 0
        same = next(
            (at for at, (old, new) in enumerate(zip(self._held, tokens[:-1], strict=False)) if old != new),
            min(len(self._held), len(tokens) - 1),
        )
        self._cache.crop(same - self._cache.get_seq_length())  # minus what goes
        self._held = tokens[:same]
        return same

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
        reading = self._read_at = time.perf_counter()
        cached = self._keep_prefix(tokens)
        self._running, self._to_read, self._new, self._evaluated = request["id"], len(tokens), len(tokens) - cached, 0
        self._pipe.send(self._running, read=cached, of=len(tokens), cached=cached)
        writer = _Writer(self, request)
        try:
            self._generate(request, tokens, min(request["max_tokens"], room), writer)
        except InterruptedError:
            writer.finish = "stopped"
        except (RuntimeError, MemoryError, ValueError) as error:  # torch's own out-of-memory error is a RuntimeError
            self._forget()
            is_memory = lacks_memory(f"{type(error).__name__} {error}")
            raise Refused("out_of_memory" if is_memory else "backend_failed", _first_line(error)) from error
        finally:
            self._running, self._to_read = 0, 0
        if rest := writer.rest():
            self._pipe.send(request["id"], text=rest)
        if self._can_cut:
            self._held = (tokens + writer.tokens)[: self._cache.get_seq_length()]
        seconds = time.perf_counter() - started
        first = writer.first_at - started if writer.first_at else 0.0
        written = writer.written
        self._pipe.send(
            request["id"],
            end={
                "finish_reason": writer.finish or "length",
                "prompt_tokens": len(tokens),
                "cached_tokens": cached,
                "evaluated_tokens": self._evaluated,
                "answer_tokens": written,
                "prefill_seconds": round(self._read_at - reading, 4),
                "first_token_seconds": round(first, 4) if first else None,
                # The first token comes out of reading the prompt; the others are what writing speed means.
                "tokens_per_second": round((written - 1) / (seconds - first), 2) if written > 1 else None,
            },
        )

    def _generate(self, request: dict[str, Any], tokens: list[int], limit: int, writer: _Writer) -> None:
        """Let the library read the prompt and write; `writer` is given each token.

        Raises:
            InterruptedError: It was stopped while it read.
        """
        torch = self._torch
        if request.get("seed") is None:
            torch.seed()
        else:
            torch.manual_seed(request["seed"])
        is_sampling = request["temperature"] > 0
        names = ("temperature", "top_p", "top_k", "min_p") if is_sampling else ()
        config = self._library.GenerationConfig(
            max_new_tokens=limit,
            do_sample=is_sampling,
            repetition_penalty=request["repeat_penalty"],
            eos_token_id=self.ends or None,
            pad_token_id=self.ends[0] if self.ends else 0,  # there is nothing to pad, but the library wants one
            prefill_chunk_size=None if self._cache is None else self._batch,
            **{name: request[name] for name in names},
        )
        prompt = torch.tensor([tokens], device=self._device)
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            stopping_criteria=self._library.StoppingCriteriaList([writer]),
            **({} if self._cache is None else {"past_key_values": self._cache}),
        )

    def tell(self, text: str) -> None:
        """A piece of the answer, for the parent."""
        if text:
            self._pipe.send(self._running, text=text)

    @property
    def is_stopped(self) -> bool:
        """Whether the running answer has been stopped."""
        return self._is_stopped(self._running)


class TokenText:
    """Turns tokens into text as they come; a character in the making waits for its rest.

    What a token adds can depend on the one before it (a space between words), so each is decoded with those that were
    told last.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._told, self._from = 0, 0  # tokens told so far, and the first of those told last

    def feed(self, token: int) -> str:
        """The text that is certain by now."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._from : self._told])
        now = self._decode(self._tokens[self._from :])
        is_half = now.endswith("\ufffd") and len(self._tokens) - self._told < _CHARACTER_TOKENS
        if is_half or len(now) <= len(before):
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return now[len(before) :]


class _Writer:
    """One answer: what the library calls with each new token, and asks whether that was the last."""

    def __init__(self, model: Model, request: dict[str, Any]) -> None:
        self._model = model
        self._stops = StopStrings(request.get("stop") or [])
        self._text = TokenText(model.decoded)
        self.tokens: list[int] = []
        self.written = 0  # tokens, without the one that ends the answer
        self.first_at = 0.0
        self.finish = ""

    def __call__(self, tokens: Any, _scores: object, **_: object) -> Any:
        """Whether to stop, as the library wants it: a tensor with one truth value."""
        if not self.finish:
            self._take(int(tokens[0, -1]))
        return tokens.new_full((1,), bool(self.finish), dtype=bool)

    def _take(self, token: int) -> None:
        self.first_at = self.first_at or time.perf_counter()
        self.tokens.append(token)
        if token in self._model.ends:
            self.finish = "stop"
            return
        self.written += 1
        text, is_met = self._stops.feed(self._text.feed(token))
        self._model.tell(text)
        self.finish = "stop" if is_met else "stopped" if self._model.is_stopped else ""

    def rest(self) -> str:
        """What was held back and is part of the answer after all."""
        return self._stops.rest()


def _first_line(error: BaseException) -> str:
    """What an error says, short enough for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


if __name__ == "__main__":
    run(Model, "transformers")
