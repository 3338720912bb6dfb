"""`LlamaCppLLM`: the LlamaIndex face of a llama.cpp child process. Made by `llama_cpp.build`."""

from __future__ import annotations

from docmind.backends.child_llm import ChildLLM
from docmind.backends.llama_cpp import CALL_OPTIONS


class LlamaCppLLM(ChildLLM):
    """A GGUF in a child process.

    Arguments of a call: the names in `llama_cpp.OPTIONS` marked `per_call` (stop, grammar, max_tokens, …).

    Raises, from every call, beside what is told in `ChildLLM`:
        BackendError: The grammar is broken.
    """

    call_options = CALL_OPTIONS

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_llama_cpp"
