"""Servers that speak OpenAI's chat protocol: where each listens, how it is started, what of the protocol is its own.

Knows the programs and services, and asks none of them: `openai_compatible.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Preset:
    """A program or service that speaks the protocol."""

    name: str  # as the option `preset` takes it
    label: str
    url: str | None  # where it listens unless told otherwise, or a service's address; None: nowhere in particular
    start: str  # the one command that sets it up
    key: str | None = None  # the environment variable with its key
    is_remote: bool = False  # on the internet: its address is only used when a profile says it
    owners: tuple[str, ...] = ()  # what `owned_by` says in its list of models
    window: tuple[str, ...] = ()  # where an entry of that list says the window; (): nowhere
    asks: Literal["", "props", "card", "rest", "running"] = ""  # how the window is asked instead
    version: str = ""  # the path that tells its version
    # Our names of sampling arguments → its own, beside those that every server knows.
    sampling: dict[str, str] = field(default_factory=dict)
    heeds_stop: bool = True  # whether it ends an answer at the texts of `stop`; else only DocMind does
    raise_window: str = ""  # how its window is made larger


_USUAL = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
_LLAMA = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty", "grammar": "grammar"}
_SMALL = "Qwen/Qwen3-4B-Instruct-2507"  # answers in many languages, and does not think

# In the order in which they are looked for on this machine. Sources, read in November 2026:
# llama-server  github.com/ggml-org/llama.cpp, tools/server/README.md; the window of one slot is what /props says
# vllm          docs.vllm.ai, OpenAI-compatible server; vllm/entrypoints/openai/models/protocol.py
# mlx           github.com/ml-explore/mlx-lm, mlx_lm/server.py
# llama-swap    github.com/mostlygeek/llama-swap, README and internal/capcompat/llamaserver.go
# instructlab   its default is llama-cpp-python's server, which owns its models as "me"; with vLLM it is that
# tabbyapi      github.com/theroyallab/tabbyAPI, endpoints/core/types/model.py
# trtllm        nvidia.github.io/TensorRT-LLM, trtllm-serve; tensorrt_llm/serve/openai_protocol.py
# lm-studio     its REST endpoints, in the documentation for developers
# groq          console.groq.com/docs/api-reference
# together      docs.together.ai/docs/inference/openai-compatibility
PRESETS: tuple[Preset, ...] = (
    Preset(
        "llama-server",
        "llama-server",
        "http://127.0.0.1:8080/v1",
        "llama-server -hf unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M -c 16384",
        key="LLAMA_API_KEY",
        owners=("llamacpp",),
        asks="props",
        sampling=_LLAMA,
        raise_window="start it with a larger -c",
    ),
    Preset(
        "vllm",
        "vLLM",
        "http://127.0.0.1:8000/v1",
        f"vllm serve {_SMALL} --max-model-len 16384",
        key="VLLM_API_KEY",
        owners=("vllm",),
        window=("max_model_len",),
        version="/version",
        sampling=_USUAL,
        raise_window="start it with a larger --max-model-len",
    ),
    Preset(
        "mlx",
        "MLX",
        "http://127.0.0.1:8080/v1",
        f"mlx_lm.server --model mlx-community/{_SMALL.partition('/')[2]}-4bit",
        sampling=_USUAL,
        # 0.32.2 compares tokens: where the model writes " Paris", "Paris" is cut out of the text, and it writes on.
        heeds_stop=False,
    ),
    Preset(
        "llama-swap",
        "llama-swap",
        "http://127.0.0.1:8080/v1",
        "llama-swap --config config.yaml --listen 127.0.0.1:8080",
        owners=("llama-swap",),
        asks="running",
        sampling=_LLAMA,
        raise_window="give its command a larger -c in config.yaml",
    ),
    Preset(
        "instructlab",
        "InstructLab",
        "http://127.0.0.1:8000/v1",
        "ilab model serve",
        owners=("me",),
        window=("max_model_len",),
        sampling={"top_k": "top_k", "min_p": "min_p"},
        raise_window="start it with a larger --max-ctx-size",
    ),
    Preset(
        "trtllm",
        "TensorRT-LLM",
        "http://127.0.0.1:8000/v1",
        f"trtllm-serve {_SMALL} --max_seq_len 16384",
        owners=("tensorrt_llm",),
        version="/version",
        sampling=_USUAL,
        raise_window="start it with a larger --max_seq_len",
    ),
    Preset(
        "tabbyapi",
        "TabbyAPI",
        "http://127.0.0.1:5000/v1",
        "./start.sh",
        key="TABBY_API_KEY",
        owners=("tabbyapi",),
        asks="card",
        sampling=_USUAL,
        raise_window="raise max_seq_len in its config.yml",
    ),
    Preset(
        "lm-studio-rest",
        "LM Studio (REST)",
        "http://127.0.0.1:1234/v1",
        "lms server start",
        key="LM_API_TOKEN",
        owners=("organization_owner",),
        asks="rest",
        sampling={"top_k": "top_k", "repeat_penalty": "repeat_penalty"},
        raise_window="load the model with a larger context length",
    ),
    Preset(
        "groq",
        "Groq",
        "https://api.groq.com/openai/v1",
        "export GROQ_API_KEY=…",
        key="GROQ_API_KEY",
        is_remote=True,
        window=("context_window",),
    ),
    Preset(
        "together",
        "Together",
        "https://api.together.ai/v1",
        "export TOGETHER_API_KEY=…",
        key="TOGETHER_API_KEY",
        is_remote=True,
        window=("context_length",),
        sampling=_USUAL,
    ),
    Preset("other", "another server", None, "export OPENAI_COMPATIBLE_URL=http://127.0.0.1:8080/v1"),
)
OTHER = PRESETS[-1]
