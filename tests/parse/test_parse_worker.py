"""The reading process: limits, crashes, cancelling, and what it may say."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from waiting import is_gone, wait_until

from docmind.errors import DocumentError
from docmind.parse import DocumentInfo, ParsedPage, ParseEnd, Parser
from docmind.parse.boxes import pack

LINE = b"(The quick brown fox jumps over the lazy dog and reads on for a while) Tj T* "
FULL_PAGE = b"BT /F1 9 Tf 11 TL 40 750 Td " + LINE * 60 + b"ET"
HELLO = b"BT /F1 20 Tf 72 700 Td (Hello) Tj ET"


def _children():
    return psutil.Process().children(recursive=True)


@pytest.fixture
def long_pdf(write_pages):
    """More pages than fit between the two processes."""
    return write_pages([FULL_PAGE] * 400, name="long.pdf")


@pytest.fixture
def laughing_pdf(write_pages, stream):
    """A good page, then one that draws a drawing that draws two drawings, thirty deep: 7 KB of endless work."""
    forms = []
    for depth in range(30):
        inner = b"<< /Fm %d 0 R >>" % (5 + depth) if depth < 29 else b"<< >>"
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> /XObject "
        forms.append(stream(b"/Fm Do /Fm Do" if depth < 29 else HELLO, entries + inner + b" >>"))
    return write_pages([HELLO, b"/Fm Do", HELLO], more=forms, resources=b"/XObject << /Fm 4 0 R >>", name="laughs.pdf")


def test_pages_come_in_order_and_the_process_serves_the_next_file(parser, long_pdf, write_pages):
    """One process, many files."""
    info, *pages, end = parser.parse(long_pdf)
    assert isinstance(info, DocumentInfo)
    assert [page.number for page in pages] == list(range(1, 401))
    assert end == ParseEnd()
    [first] = _children()
    assert len(list(parser.parse(write_pages([HELLO])))) == 3
    assert _children() == [first]


def test_endless_computing_ends_at_the_time_limit_and_keeps_what_was_read(config, laughing_pdf, write_pages):
    """The page before stays, the reason says why, and the next file is read."""
    with Parser(dataclasses.replace(config, parse_cpu_seconds=1.0, parse_memory_bytes=8 << 30)) as parser:
        _, page, end = parser.parse(laughing_pdf)
        assert (page.text.strip(), end.reason) == ("Hello", "time_limit")
        assert end.hint
        assert len(list(parser.parse(write_pages([HELLO])))) == 3


def test_a_memory_hog_ends_at_the_memory_limit_and_keeps_what_was_read(config, laughing_pdf, write_pages):
    """The same drawing takes a hundred megabytes within a second."""
    with Parser(dataclasses.replace(config, parse_cpu_seconds=600.0, parse_memory_bytes=200 << 20)) as parser:
        _, page, end = parser.parse(laughing_pdf)
        assert (page.text.strip(), end.reason) == ("Hello", "memory_limit")
        assert len(list(parser.parse(write_pages([HELLO])))) == 3


def test_a_limit_before_the_first_page_refuses_the_file(config, long_pdf):
    """Nothing was read, so there is nothing to keep."""
    with (
        Parser(dataclasses.replace(config, parse_memory_bytes=1 << 20)) as parser,
        pytest.raises(DocumentError) as caught,
    ):
        list(parser.parse(long_pdf))
    assert caught.value.reason == "memory_limit"


def test_a_killed_process_leaves_what_was_read_and_a_reason(parser, long_pdf, write_pages):
    """As when the system runs out of memory and picks the reader."""
    events = parser.parse(long_pdf)
    read = [next(events) for _ in range(4)]
    [worker] = _children()
    worker.kill()
    read += events
    *_, end = read
    assert end.reason == "worker_crashed"
    assert end.hint
    numbers = [event.number for event in read if isinstance(event, ParsedPage)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 3 <= len(numbers) < 400
    assert len(list(parser.parse(write_pages([HELLO])))) == 3


def test_a_process_killed_between_two_files_is_replaced(parser, write_pages):
    """The next file does not suffer for it."""
    path = write_pages([HELLO])
    list(parser.parse(path))
    [worker] = _children()
    worker.kill()
    wait_until(lambda: is_gone(worker))
    assert len(list(parser.parse(path))) == 3


def test_closing_the_iterator_leaves_no_process_behind(parser, long_pdf, write_pages):
    """Cancel, then go on with another file."""
    events = parser.parse(long_pdf)
    next(events)
    next(events)
    events.close()
    assert _children() == []
    assert len(list(parser.parse(write_pages([HELLO])))) == 3
    parser.close()
    assert _children() == []


def test_the_process_is_replaced_after_so_many_files(config, write_pages):
    """What a library leaks, it does not leak for long."""
    path = write_pages([HELLO])
    with Parser(dataclasses.replace(config, parse_files_per_worker=2)) as parser:
        seen = []
        for _ in range(4):
            list(parser.parse(path))
            seen += [child.pid for child in _children()]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert _children() == []


def test_a_slow_reader_of_the_pages_is_no_stall(config, long_pdf):
    """While nobody takes pages, the process waits, and that is not its fault."""
    with Parser(dataclasses.replace(config, parse_stall_seconds=0.5)) as parser:
        events = parser.parse(long_pdf)
        next(events)
        next(events)
        time.sleep(1.5)
        *_, end = events
    assert end == ParseEnd()


def test_a_file_that_changes_while_it_is_read_says_so(parser, long_pdf):
    """Half of the old text and half of the new is no document."""
    events = parser.parse(long_pdf)
    next(events)
    with long_pdf.open("ab") as file:
        file.write(b"% one more line\n")
    *_, end = events
    assert end.reason == "changed_while_reading"


def test_the_process_ends_when_its_parent_is_killed(tmp_path, long_pdf):
    """Nothing stays behind after a crash of the app, not even in the middle of a file."""
    script = (
        "import sys, time, psutil\n"
        "from pathlib import Path\n"
        "from docmind.config import Config\n"
        "from docmind.parse import Parser\n"
        "events = Parser(Config(home=Path(sys.argv[1]))).parse(Path(sys.argv[2]))\n"
        "next(events)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path, long_pdf], stdout=subprocess.PIPE) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: is_gone(worker))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limits; the parent watches there")
def test_the_process_sets_itself_limits(parser, write_pages):
    """Memory, CPU time, no core dump with a person's text in it, and not a byte written to any file."""
    import resource

    list(parser.parse(write_pages([HELLO])))
    [worker] = _children()
    assert worker.rlimit(resource.RLIMIT_DATA)[1] == parser.config.parse_memory_bytes
    assert worker.rlimit(resource.RLIMIT_CORE) == (0, 0)
    assert worker.rlimit(resource.RLIMIT_FSIZE) == (0, 0)
    assert 30 <= worker.rlimit(resource.RLIMIT_CPU)[0] < 60


def test_the_process_imports_nothing_heavy():
    """It is started often and must be there at once."""
    script = "import docmind.parse.worker, docmind.parse.pdf, docmind.parse.text, sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    heavy = {"torch", "llama_index", "streamlit", "transformers", "pypdf", "charset_normalizer", "psutil", "PIL"}
    assert not heavy & set(output.split())


# ---- What a process in the hands of a hostile file might say -----------------------------------------------------

GOOD_INFO = {"info": ["text", 2, "", []]}
PAGE_FIELDS = ("number", "text", "source", "reason", "by", "boxes", "width", "height")
GOOD_PAGE = {"page": [1, "some text", "text", None, "reader 1", "", 0.0, 0.0]}


def _page(**changes):
    fields = dict(
        zip(["number", "text", "source", "reason", "by", "boxes", "width", "height"], GOOD_PAGE["page"], strict=True)
    )
    return {"page": list((fields | changes).values())}


@pytest.fixture
def saying(tmp_path):
    """Makes the command of a worker that answers every job with the given lines, then does what `then` says."""

    def command(*lines, then="pass"):
        said = [line if isinstance(line, bytes) else json.dumps(line).encode("ascii") for line in lines]
        (tmp_path / "said").write_bytes(b"".join(line + b"\n" for line in said))
        script = (
            "import os, pathlib, sys, time\n"
            "for job in sys.stdin.buffer:\n"
            "    sys.stdout.buffer.write(pathlib.Path(sys.argv[1]).read_bytes())\n"
            "    sys.stdout.buffer.flush()\n"
            f"    {then}\n"
        )
        return [sys.executable, "-c", script, str(tmp_path / "said")]

    return command


@pytest.fixture
def text_file(tmp_path):
    """A file for a worker that does not look at it."""
    path = tmp_path / "any.txt"
    path.write_text("text")
    return path


def test_an_honest_substitute_is_believed(config, text_file, saying):
    """The lines below are refused for what is wrong in them and for nothing else."""
    second = _page(number=2, text="ab cd", boxes=base64.b64encode(pack([(0, 2, 1, 2, 3, 4)])).decode())
    with Parser(config, saying(GOOD_INFO, GOOD_PAGE, second, {"end": None})) as parser:
        for _ in range(2):
            info, one, two, end = parser.parse(text_file)
            assert (info.pages, one.number, two.number, end) == (2, 1, 2, ParseEnd())


@pytest.mark.parametrize(
    "line",
    [
        b"Warning: something is odd",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"{}",
        b'{"page": 1, "end": null}',
        {"surprise": 1},
        {"end": "because"},
        {"end": None},
        {"refused": "damaged"},
        GOOD_INFO,
        _page(number=1),
        _page(number=3),
        _page(number="2"),
        _page(number=2, text=7),
        _page(number=2, text="a\ud800"),
        _page(number=2, text="a\0b"),
        _page(number=2, text="a" * 2_000_001),
        _page(number=2, source="none"),
        _page(number=2, reason="blank"),
        _page(number=2, source="none", reason="because"),
        _page(number=2, by="x" * 100),
        _page(number=2, boxes="!"),
        _page(number=2, boxes="QUJD"),
        _page(number=2, boxes=base64.b64encode(pack([(0, 20, 1, 2, 3, 4)])).decode()),
        _page(number=2, width=-1.0),
        _page(number=2, height=float("nan")),
        _page(number=2, height=float("inf")),
        _page(number=2, width="wide"),
        {"page": [2, "too short"]},
    ],
    ids=lambda line: str(line)[:40],
)
def test_a_process_that_breaks_a_rule_is_ended_and_what_was_read_is_kept(config, text_file, line, saying):
    """Nothing it says afterwards is heard."""
    with Parser(config, saying(GOOD_INFO, GOOD_PAGE, line, _page(number=2), {"end": None})) as parser:
        *read, end = parser.parse(text_file)
        assert [type(event) for event in read] == [DocumentInfo, ParsedPage]
        assert end.reason == "worker_crashed"
        assert _children() == []


@pytest.mark.parametrize(
    "line",
    [
        {"info": ["pdf", 2, "", []]},
        {"info": ["text", 0, "", []]},
        {"info": ["text", 10**9, "", []]},
        {"info": ["text", 2, "two\nlines", []]},
        {"info": ["text", 2, "x" * 500, []]},
        {"info": ["text", 2, "", [[0, "zero"]]]},
        {"info": ["text", 2, "", ["heading"]]},
        {"refused": "because"},
        {"refused": ["damaged"]},
        GOOD_PAGE,
    ],
    ids=str,
)
def test_a_wrong_beginning_refuses_the_file(config, text_file, line, saying):
    """Kind, number of pages, title and outline are checked as well."""
    with Parser(config, saying(line)) as parser, pytest.raises(DocumentError) as caught:
        list(parser.parse(text_file))
    assert caught.value.reason == "worker_crashed"


def test_a_process_that_falls_silent_has_stalled(config, text_file, saying):
    """Neither a page nor computing for as long as the setting says."""
    sleepy = saying(GOOD_INFO, GOOD_PAGE, then="time.sleep(600)")
    with Parser(dataclasses.replace(config, parse_stall_seconds=0.5), sleepy) as parser:
        *_, end = parser.parse(text_file)
    assert end.reason == "stalled"


def test_a_process_that_cannot_start_is_a_reason_too(config, text_file):
    """A broken installation does not look like a broken file forever; it has a reason and a hint."""
    with Parser(config, [sys.executable, "-c", "raise SystemExit(3)"]) as parser:
        with pytest.raises(DocumentError) as caught:
            list(parser.parse(text_file))
        assert caught.value.reason == "worker_crashed"


def test_what_libraries_print_does_not_reach_the_protocol(config, text_file):
    """Neither print nor a write to the descriptor from C."""
    script = (
        "import os\n"
        "from docmind.parse import text, worker\n"
        "quiet = text.read_text\n"
        "def noisy(path, kind):\n"
        "    print('a warning', flush=True)\n"
        "    os.write(1, b'from C\\n')\n"
        "    yield from quiet(path, kind)\n"
        "text.read_text = noisy\n"
        "worker.main(1 << 30, 30.0, 0.5)\n"
    )
    with Parser(config, [sys.executable, "-c", script]) as parser:
        _, page, end = parser.parse(text_file)
    assert (page.text, end) == ("text", ParseEnd())


def test_the_process_is_not_given_the_keys_of_the_house(config, text_file, monkeypatch):
    """Variables with tokens stay with the parent."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    script = (
        "import sys, os, json\n"
        "for job in sys.stdin.buffer:\n"
        "    title = os.environ.get('OPENAI_API_KEY', 'nothing')\n"
        "    print(json.dumps({'info': ['text', 1, title, []]}), flush=True)\n"
    )
    with Parser(config, [sys.executable, "-c", script]) as parser:
        events = parser.parse(text_file)
        assert next(events).title == "nothing"
        events.close()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_abort_counts_as_out_of_memory_where_memory_is_limited(config, text_file, saying):
    """pdfium aborts when it gets no memory; that is how it shows."""
    with Parser(config, saying(GOOD_INFO, GOOD_PAGE, then=f"os.kill(os.getpid(), {int(signal.SIGABRT)})")) as parser:
        *_, end = parser.parse(text_file)
    assert end.reason == ("memory_limit" if sys.platform == "linux" else "worker_crashed")
