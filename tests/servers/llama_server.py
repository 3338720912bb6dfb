"""llama.cpp's own server on the bundled model, in a process of its own: a real peer, carried by the package xllamacpp.

with serve(window=2048) as url:      # of each of its two slots
    …

python -m tests.servers.llama_server [--window 2048] [--key KEY]     # by hand; it ends with its input
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SLOTS = 2


@contextlib.contextmanager
def serve(window=2048, key=None, *, embeddings=False):
    """The address of a running server, until the block ends; one for `embeddings` makes vectors and writes nothing."""
    command = [sys.executable, "-m", "tests.servers.llama_server", "--window", str(window)]
    command += ["--key", key] if key else []
    command += ["--embeddings"] if embeddings else []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY
    ) as process:
        try:
            for line in process.stdout:  # it may say other things first
                if line.startswith("http://"):
                    break
            else:
                raise RuntimeError("llama.cpp's server did not start")
            yield line.strip()
        finally:
            process.kill()


def main():
    """Serve until the input ends; the address is printed."""
    import xllamacpp

    from docmind.backends import llama_cpp
    from docmind.config import load_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=2048, help="tokens of each slot")
    parser.add_argument("--key")
    parser.add_argument("--embeddings", action="store_true", help="make vectors, the mean over the model's tokens")
    arguments = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    path = next(info.path for info in llama_cpp.models(load_config()) if info.name == llama_cpp.STARTER)
    parameters.model.path = str(path)
    parameters.model_alias = {"starter"}
    parameters.n_parallel = SLOTS
    parameters.n_ctx = arguments.window * SLOTS
    # llama.cpp's threads wait for each other by spinning: where the cores are busy two are fifty times slower than one.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_batch = parameters.n_ubatch = 64  # it looks at what it was told only between two batches
    if arguments.embeddings:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if arguments.key:
        parameters.api_keys = [arguments.key]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
