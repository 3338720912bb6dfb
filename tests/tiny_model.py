"""A Hugging Face folder small enough to be made on the spot: a Llama of random weights with a tokenizer and a template.

What it writes makes no sense, but depends on every token it has read, is always the same, and never ends by itself.
"""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WINDOW = 8192
SPECIAL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = """
the of and a to in is was he for it with as his on be at by had not are but from or have an they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me
even most made after also did many before must through back years where much your way well down should because
each just those people how too little state good very make world still own see men work long get here between
both life being under never day same another know while last might us great old year off come since against go
came right used take three sailor home harbour budget committee capital
"""


def tokenizer():
    """Byte-level BPE over some common words: every text can be read and comes back as it was."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS.split() * 3)], trainer)
    return made


def make(folder, *, layers=8, hidden=64, seed=1, config=(), template=TEMPLATE):
    """Writes the folder, about 2 MB; `config` changes what its config.json says."""
    folder.mkdir(parents=True)
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden // 4, "max_position_embeddings": WINDOW,
        "vocab_size": made.get_vocab_size(), "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**settings, **dict(config)}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1], "chat_template": template})
    )
    save_file(_weights(settings, seed, _no_words(made)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _no_words(made):
    """The tokens that are no piece of text by themselves: control tokens, and bytes of longer characters."""
    return [number for number in range(made.get_vocab_size()) if not made.decode([number]).strip("\ufffd ")]


def _weights(settings, seed, never_written):
    """Large enough numbers that the next word depends on everything before it."""
    random = np.random.default_rng(seed)
    hidden, middle, vocabulary = settings["hidden_size"], settings["intermediate_size"], settings["vocab_size"]
    narrow = hidden // settings["num_attention_heads"] * settings["num_key_value_heads"]

    def matrix(*shape):
        return random.normal(0.0, 2.0 / np.sqrt(shape[-1]), shape).astype(np.float32)

    ones = np.ones(hidden, np.float32)
    weights = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones.copy()}
    weights["lm_head.weight"] = matrix(vocabulary, hidden)
    weights["lm_head.weight"][never_written] = 0.0  # a chance of one in many, never the likeliest
    for layer in range(settings["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{name}.self_attn.k_proj.weight": matrix(narrow, hidden),
            f"{name}.self_attn.v_proj.weight": matrix(narrow, hidden),
            f"{name}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{name}.mlp.gate_proj.weight": matrix(middle, hidden),
            f"{name}.mlp.up_proj.weight": matrix(middle, hidden),
            f"{name}.mlp.down_proj.weight": matrix(hidden, middle),
            f"{name}.input_layernorm.weight": ones.copy(),
            f"{name}.post_attention_layernorm.weight": ones.copy(),
        }
    return weights
