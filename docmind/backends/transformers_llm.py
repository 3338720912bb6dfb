"""`TransformersLLM`: the LlamaIndex face of a Hugging Face folder in a child process. Made by `transformers.build`."""

from __future__ import annotations

from docmind.backends.child_llm import ChildLLM
from docmind.backends.transformers import CALL_OPTIONS


class TransformersLLM(ChildLLM):
    """A Hugging Face folder in a child process.

    Arguments of a call: the names in `transformers.OPTIONS` marked `per_call` (stop, max_tokens, …).
    """

    call_options = CALL_OPTIONS

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_transformers"
