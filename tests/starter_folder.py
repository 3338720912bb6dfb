"""The bundled starter as a Hugging Face folder, made from its GGUF: 269 MB in 16-bit numbers, in half a minute.

    pip install gguf accelerate      # needed for this alone
"""

from __future__ import annotations

import subprocess
import sys

MAKE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float16)
model.config.__dict__.pop("quantization_config", None)
model.hf_quantizer, model.is_quantized = None, False
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""


def make(gguf, out):
    """Writes the folder, from the file of the starter."""
    subprocess.run([sys.executable, "-c", MAKE, str(gguf.parent), gguf.name, str(out)], check=True, capture_output=True)
