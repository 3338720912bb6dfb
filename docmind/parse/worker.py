"""The reading process: `python -m docmind.parse.worker`. Reads one hostile file after another and says what it found.

Jobs come as JSON lines on stdin, {"path", "kind"}; answers go as JSON lines to the pipe that was stdout:
{"info": [...]}, {"page": [...]}, then {"end": reason} or {"refused": reason}; the lists are the fields of
`DocumentInfo` and `ParsedPage` in order. The other side, `docmind.parse.parser`, trusts none of it.

Knows nothing of the library, of models, or of who asks. Imports no more than it needs: it is started often.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from docmind.parse.pages import CannotRead, DocumentInfo, ParsedPage, ParseEnd, ParseEvent


def main(memory_bytes: int, cpu_seconds: float, cpu_seconds_per_page: float) -> None:
    """Serves jobs until stdin closes, which it does when the parent dies."""
    answers = take_stdout()
    jobs = read_jobs(sys.stdin.buffer)
    # Loaded before the limits, so that they are about files and not about libraries.
    from docmind.parse.pdf import read_pdf
    from docmind.parse.text import read_text

    limit_memory(memory_bytes)
    for job in iter(jobs.get, None):
        path, kind = Path(job["path"]), job["kind"]
        limit_cpu(cpu_seconds)
        events = read_pdf(path) if kind == "pdf" else read_text(path, kind)
        try:
            for event in events:
                if isinstance(event, DocumentInfo):
                    limit_cpu(cpu_seconds + cpu_seconds_per_page * event.pages)
                say(answers, _message(event))
        except CannotRead as error:
            say(answers, {"refused": error.reason})
        except FileNotFoundError:
            say(answers, {"refused": "not_found"})
        except OSError:
            say(answers, {"refused": "not_readable"})
        except MemoryError:
            # What holds the memory may not let go of it: a fresh process reads the next file.
            del events
            say(answers, {"end": "memory_limit"})
            return


def _message(event: ParseEvent) -> dict[str, Any]:
    if isinstance(event, DocumentInfo):
        return {"info": [event.kind, event.pages, event.title, event.outline]}
    if isinstance(event, ParsedPage):
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        fields["boxes"] = base64.b64encode(event.boxes).decode("ascii")
        return {"page": list(fields.values())}
    assert isinstance(event, ParseEnd)
    return {"end": event.reason}


def say(answers: BinaryIO, message: dict[str, Any]) -> None:
    """One line to the parent, sent at once."""
    answers.write(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
    answers.flush()


def take_stdout() -> BinaryIO:
    """The pipe to the parent, kept for this module alone: whatever libraries print goes to stderr instead."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def read_jobs(stdin: BinaryIO) -> queue.SimpleQueue[dict[str, Any]]:
    """The jobs as they come. When the parent goes, so does this process, at once and whatever it is doing."""
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return jobs


def limit_memory(memory_bytes: int) -> None:
    """Caps what the process can allocate where the system can; the parent watches in any case.

    RLIMIT_DATA and not RLIMIT_AS: it counts what is allocated, not what is mapped, such as libraries and the stacks of
    threads. Core dumps are off, they would hold a person's document; and no file is ever written from here.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none; macOS refuses some
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def limit_cpu(seconds: float) -> None:
    """Lets the system end this process after so much more CPU time, should the parent not be there to do so."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        # Two seconds more than the parent allows: it is the one that counts, and knows why it ends a process.
        soft = int(time.process_time() + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
