"""Every command, for people and as JSON: what it prints, its exit status, and what never reaches the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from docmind import store
from docmind.cli import build_parser, main
from docmind.library import Library

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# The keys of docs' contract; more may come, none may go.
KEYS = {
    "add": "path status document_id pages pages_without_text passages seconds reason hint",
    "documents": "document_id name path collections pages passages state added_at sha256",
    "pages": "page characters source reason",
    "search": "rank document_id document page start end text score",
    "ask": "answer finished reason sentences citations steps backend model profile fallbacks context timings",
    "backends": "backend label available reason hint url version models",
    "download": "file model size_bytes sha256 fits",
    "profiles": "name role backend model enabled options source",
    "evaluate": "questions hit@1 hit@3 hit@5 hit@10 mrr ndcg@10 seconds_per_question",
    "doctor": "check ok detail hint",
}


@pytest.fixture
def run(capsys):
    """Runs a command; gives its status, the lines of stdout and the text of stderr."""

    def call(*argv):
        capsys.readouterr()
        status = main([str(part) for part in argv])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


@pytest.fixture
def run_json(run):
    """The same with --json: each line is an object."""

    def call(*argv):
        status, lines, err = run(*argv, "--json")
        return status, [json.loads(line) for line in lines], err

    return call


def has_keys(row, command):
    """Whether a row has all keys of the contract."""
    missing = set(KEYS[command].split()) - set(row)
    assert not missing, missing
    return True


# Commands ---------------------------------------------------------------------------------------------------------


def test_add_tells_each_file_and_sums_up(run, run_json, files):
    """People and JSON, first and again, with a file that is refused."""
    (files / "picture.png").write_bytes(b"\x89PNG")
    status, rows, _ = run_json("add", files, "--collection", "papers")
    assert status == 0
    assert all(has_keys(row, "add") for row in rows[:-1])
    assert rows[-1]["summary"].keys() >= {"added", "unchanged", "replaced", "partial", "refused", "seconds"}
    assert (rows[-1]["summary"]["added"], rows[-1]["summary"]["refused"]) == (3, 1)
    (refused,) = [row for row in rows[:-1] if row["status"] == "refused"]
    assert (refused["reason"], refused["document_id"], refused["pages"]) == ("unsupported_type", None, None)
    status, lines, _ = run("add", files)
    assert status == 0
    assert any(line.startswith("unchanged recipes.txt · 2 pages") for line in lines)
    assert any(line.startswith("refused   picture.png") for line in lines)
    assert lines[-1].startswith("3 unchanged, 1 refused · ")
    status, rows, _ = run_json("documents", "--collection", "papers")
    assert {row["name"] for row in rows} == {"beekeeping.md", "harbour report 2023.pdf", "recipes.txt"}


def test_add_that_achieves_nothing_ends_with_one(run, tmp_path):
    """Nothing there, or nothing of use."""
    (tmp_path / "empty").mkdir()
    status, lines, _ = run("add", tmp_path / "empty")
    assert (status, lines) == (1, ["No files found there."])
    status, lines, _ = run("add", tmp_path / "missing.pdf")
    assert status == 1
    assert lines[0].startswith("refused   missing.pdf")
    assert "not there" in lines[1]


def test_documents_are_listed(run, run_json, stocked):
    """In the order they were added."""
    status, rows, _ = run_json("documents")
    assert status == 0
    assert len(rows) == 3
    assert all(has_keys(row, "documents") for row in rows)
    assert all(re.fullmatch(r"[0-9a-f]{64}", row["sha256"]) for row in rows)
    status, lines, _ = run("documents")
    assert status == 0
    assert lines[0].startswith(f"{rows[0]['document_id']}  {rows[0]['name']} · ")


def test_an_empty_library_says_what_to_do(run, run_json):
    """An empty list, and status 0."""
    assert run_json("documents")[:2] == (0, [])
    status, lines, _ = run("documents")
    assert status == 0
    assert "docmind add" in lines[0]
    assert run("search", "x")[:2] == (0, ["Nothing found."])
    assert run_json("search", "x")[:2] == (0, [])


def test_pages_are_the_x_ray_of_a_document(run, run_json, stocked):
    """One row per page."""
    status, rows, _ = run_json("pages", "recipes.txt")
    assert status == 0
    assert [row["page"] for row in rows] == [1, 2]
    assert all(has_keys(row, "pages") for row in rows)
    assert all(row["source"] == "text" and row["characters"] > 50 and row["reason"] is None for row in rows)
    assert run("pages", "recipes.txt")[1][0].startswith("page    1  text")


def test_search_prints_passages_best_first(run, run_json, stocked):
    """With offsets into the stored page."""
    status, rows, _ = run_json("search", "honey for the winter", "-k", "2")
    assert status == 0
    assert [row["rank"] for row in rows] == [1, 2]
    assert all(has_keys(row, "search") for row in rows)
    assert rows[0]["document"] == "beekeeping.md"
    for row in rows:
        assert stocked.page(row["document_id"], row["page"]).text[row["start"] : row["end"]] == row["text"]
    status, lines, _ = run("search", "honey", "--document", "recipes.txt")
    assert status == 0
    assert all("recipes.txt" in line for line in lines[::2])
    status, lines, err = run("search", "honey", "--collection", "none")
    assert (status, lines) == (1, [])
    assert "There is no collection" in err


def test_remove_says_what_went(run, run_json, stocked):
    """And an unknown name removes nothing and names the nearest."""
    status, lines, err = run("remove", "recipes.txt", "beekeping.md")
    assert (status, lines) == (1, [])
    assert "There is no document 'beekeping.md'." in err
    assert "'beekeeping.md'" in err
    assert len(stocked.documents()) == 3
    bees = stocked.document("beekeeping.md").document_id
    assert run_json("remove", "beekeeping.md")[:2] == (0, [{"removed": [bees]}])
    assert run("remove", "recipes.txt")[:2] == (0, ["removed recipes.txt"])
    assert [document.name for document in stocked.documents()] == ["harbour report 2023.pdf"]


def test_backends_are_listed_with_their_models(run, run_json):
    """The starter's file is always there."""
    status, rows, _ = run_json("backends")
    assert status == 0
    assert all(has_keys(row, "backends") for row in rows)
    (llama,) = [row for row in rows if row["backend"] == "llama.cpp"]
    assert llama["available"]
    assert {"name", "context_window", "size_bytes", "quantization", "loaded"} <= llama["models"][0].keys()
    assert any("smollm2" in line for line in run("backends", "--all")[1])


def test_profiles_are_listed_and_shown(run, run_json):
    """The starter among them; an unknown name names the nearest."""
    status, rows, _ = run_json("profiles")
    assert status == 0
    assert all(has_keys(row, "profiles") for row in rows)
    assert run_json("profiles", "show", "starter")[1][0]["name"] == "starter"
    assert any(line.startswith("model ") for line in run("profiles", "show", "starter")[1])
    assert run("profiles", "list")[0] == 0
    status, _, err = run("profiles", "show", "startr")
    assert status == 1
    assert "Did you mean 'starter'?" in err


STARTER = ("--backend", "llama.cpp", "--model", "smollm2-135m-instruct")


def test_a_profile_is_saved_changed_and_removed(run, run_json):
    """Each key by its name, each option of the backend below `options`."""
    status, (row,), _ = run_json(
        "profiles", "save", "Mine", *STARTER, "--set", "temperature=0.5", "--set", "options.threads=2",
        "--set", 'stop=["END"]', "--set", "description=12 = a dozen", "--set", "idle_seconds=9",
    )  # fmt: skip
    assert status == 0
    assert has_keys(row, "profiles")
    assert row["source"] == "user"
    given = row["options"]
    assert (given["temperature"], given["threads"], given["stop"]) == (0.5, 2, ["END"])
    assert given["description"] == "12 = a dozen"
    status, _, err = run("profiles", "save", "Mine", *STARTER)
    assert (status, "already" in err) == (1, True)
    status, lines, _ = run("profiles", "save", "Mine", "--from", "Mine", "--set", "temperature=1", "--overwrite")
    assert status == 0
    assert "does not take idle_seconds as set" in "".join(lines)
    shown = run_json("profiles", "show", "Mine")[1][0]["options"]
    assert (shown["temperature"], shown["threads"]) == (1.0, 2)
    assert run_json("profiles", "remove", "Mine")[1][0]["removed"] == "Mine"
    assert run("profiles", "show", "Mine")[0] == 1


def test_the_tables_of_auto_are_set_by_their_backend_s_name(run, run_json):
    """Also of one with a dot in its name."""
    status, (row,), _ = run_json(
        "profiles", "save", "any", "--backend", "auto", "--set", 'models.llama.cpp=["*Qwen*"]', "--set",
        'models.other=["x"]', "--set", "options.llama.cpp.threads=2", "--set", "options.ollama.keep_alive=1h",
    )  # fmt: skip
    assert status == 0
    assert row["options"]["models"] == {"llama.cpp": ["*Qwen*"], "other": ["x"]}
    assert row["options"]["llama.cpp"] == {"threads": 2}
    assert row["options"]["ollama"] == {"keep_alive": "1h"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["save", "p", *STARTER, "--set", "temprature=1"], "Did you mean 'temperature'?"),
        (["save", "p", *STARTER, "--set", "temperature=hot"], "a number from 0 to 5"),
        (["save", "p", *STARTER, "--set", "options.thread=1"], "Did you mean 'threads'?"),
        (["save", "p", *STARTER, "--set", "optins.thread=1"], "options"),
        (["save", "p", *STARTER, "--set", "temperature"], "--set temperature=0.2"),
        (["save", "p", "--backend", "olama", "--model", "x"], "Did you mean 'ollama'?"),
        (["save", "p", "--backend", "ollama"], 'model = "'),
        (["save", "p", "--from", "nobody"], "There are:"),
        (["save"], "docmind profiles"),
        (["remove", "starter"], "hide it"),
        (["remove", "nobody"], "There are:"),
        (["test", "nobody"], "There are:"),
        (["test", "balanced"], "GGUF"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_with_a_profile_says_what_to_do(run, config, arguments, words):
    """And nothing is written."""
    status, _, err = run("profiles", *arguments)
    assert status == 1
    assert words in err
    assert not list((config.home / "models").glob("*"))


@pytest.mark.usefixtures("end_models")
def test_a_profile_is_tested_with_its_own_settings(run, run_json):
    """First token, tokens per second, the real window, the first words."""
    run("profiles", "save", "mine", *STARTER, "--set", "context_window=1024", "--set", "total_seconds=60")
    status, (row,), _ = run_json("profiles", "test", "mine")
    assert status == 0
    assert row["text"]
    assert row["first_token_s"] > 0
    assert row["tokens_per_second"] > 0
    assert (row["context_window"], row["settings_left_out"]) == (1024, ["total_seconds"])
    status, lines, _ = run("profiles", "test", "mine")
    assert status == 0
    assert any("tokens/s · window 1,024 tokens" in line for line in lines)


def test_evaluate_measures(run, run_json, stocked, tmp_path):
    """The last line is the summary."""
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": "lemon cake", "answer": "", "doc": "recipes.txt", "pages": [1]}))
    status, rows, _ = run_json("evaluate", questions)
    assert status == 0
    assert has_keys(rows[-1], "evaluate")
    assert rows[-1]["hit@1"] == 1.0
    assert any(line.startswith("mrr ") for line in run("evaluate", questions)[1])
    assert run("evaluate", tmp_path / "missing.jsonl")[0] == 1


def test_reindex_embeds_again(run, run_json, stocked):
    """As many passages as there are."""
    count = stocked.counts()["passages"]
    assert run_json("reindex")[:2] == (0, [{"passages": count}])
    assert run("reindex")[1] == [f"{count} passages indexed again"]


def test_another_embedding_model_is_an_error_that_names_the_command(run, stocked):
    """And the command mends it."""
    with store.writing(stocked.path) as db:
        ((value,),) = db.execute("SELECT value FROM meta WHERE key = 'embedding'").fetchall()
        stored = json.loads(value)
        stored["canary"] = stored["canary"][::-1]
        db.execute("UPDATE meta SET value = ? WHERE key = 'embedding'", (json.dumps(stored),))
    status, _, err = run("search", "honey")
    assert status == 1
    assert "docmind reindex" in err
    assert run("reindex")[0] == 0
    assert run("search", "honey")[0] == 0


# Usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["search"],
        ["search", "x", "-k", "0"],
        ["search", "x", "-k", "many"],
        ["add"],
        ["ask", "x", "--nonsense"],
        ["profiles", "dance"],
    ],
)
def test_wrong_usage_ends_with_two(argv):
    """argparse's own status."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_home_is_taken_before_and_after_the_command(run_json, stocked, tmp_path):
    """The nearer one wins; without it DOCMIND_HOME holds."""
    empty = tmp_path / "empty"
    assert len(run_json("documents")[1]) == 3
    assert run_json("--home", empty, "documents")[1] == []
    assert run_json("documents", "--home", empty)[1] == []
    assert len(run_json("--home", empty, "documents", "--home", stocked.config.home)[1]) == 3
    assert len(run_json("--json", "documents")[1]) == 3


def test_every_command_takes_home_and_json():
    """None was forgotten."""
    commands = next(a for a in build_parser()._actions if hasattr(a, "choices") and a.choices).choices
    assert set(commands) >= {
        "add",
        "documents",
        "pages",
        "remove",
        "search",
        "ask",
        "backends",
        "profiles",
        "evaluate",
        "doctor",
    }
    for sub in commands.values():
        assert {"--home", "--json", "--debug"} <= {
            option for action in sub._actions for option in action.option_strings
        }


def test_errors_are_two_lines_and_tracebacks_only_wanted_ones(run, stocked):
    """Message and hint on stderr, nothing on stdout."""
    status, out, err = run("pages", "nothing.pdf")
    assert (status, out) == (1, [])
    assert err.splitlines() == ["docmind: There is no document 'nothing.pdf'.", err.splitlines()[1]]
    assert "Traceback" in run("pages", "nothing.pdf", "--debug")[2]


def test_a_reader_that_leaves_is_no_error(stocked, in_child):
    """`docmind documents | head -1`, with more than a pipe holds."""
    code = (
        "import sys\nfrom docmind import cli\nstatus = 0\n"
        "for _ in range(300): status |= cli.main(['documents', '--json'])\nsys.exit(status)"
    )
    environment = in_child.environment | {"DOCMIND_HOME": str(stocked.config.home)}
    with subprocess.Popen(
        [in_child.python, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
        assert child.wait(120) == 0
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_no_escape_sequence_of_a_file_name_or_title_reaches_the_terminal(run, run_json, tmp_path):
    """Neither of names, titles, collections nor of what was asked."""
    folder = tmp_path / "evil"
    folder.mkdir()
    red = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e.txt"
    (folder / red).write_text("The evil file speaks of \x1b[2J lions and of zebras.\n")
    (folder / "\x1b[5mblink.docx").write_text("x")
    outputs = [
        run("add", folder, "--collection", "\x1b[31mcollection"),
        run("documents"),
        run("search", "lions"),
        run("pages", red),
        run("pages", "\x1b[31mnothing"),
        run("search", "lions", "--document", "\x1b]0;x\x07"),
        run("profiles", "show", "\x1b[31m"),
        run("remove", red),
    ]
    assert [status for status, _, _ in outputs] == [0, 0, 0, 0, 1, 1, 1, 0]
    for status, lines, err in outputs:
        assert not ESCAPE.search("".join(lines)), (status, lines)
        assert not ESCAPE.search(err.replace("\n", "")), err
    assert "red" in outputs[1][1][0]


def test_json_is_plain_ascii(run, stocked):
    """So that no terminal and no code page gets in the way."""
    _, lines, _ = run("search", "honey", "--json")
    assert all(line.isascii() and not ESCAPE.search(line) for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are Unicode there")
def test_arguments_that_are_no_utf8_do_no_harm(run, stocked):
    """A shell passes any bytes."""
    odd = os.fsdecode(b"honey \xff")
    assert run("search", odd)[0] == 0
    assert run("search", "honey", "--collection", odd)[0] == 1
    assert run("pages", odd)[0] == 1
    assert run("add", odd)[0] == 1


def test_a_library_of_a_newer_docmind_ends_with_one(run, stocked):
    """Message and hint, no traceback, for each command that needs it."""
    with store.writing(stocked.path) as db:
        db.execute("PRAGMA user_version = 999")
    for argv in (["documents"], ["search", "x"], ["add", "x"], ["remove", "x"], ["ask", "x"]):
        status, _, err = run(*argv)
        assert status == 1
        assert "newer DocMind" in err
        assert "Traceback" not in err


# Asking -----------------------------------------------------------------------------------------------------------


def test_ask_streams_and_ends_with_the_whole_answer(run, run_json, stocked):
    """JSON: steps and pieces, then the contract's row; people: the answer on stdout, figures on stderr."""
    question = "How many containers did the harbour of Ellmere handle in 2023?"
    status, rows, _ = run_json("ask", question)
    assert status == 0
    answer = rows[-1]
    assert has_keys(answer, "ask")
    assert "".join(row["delta"] for row in rows if "delta" in row) == answer["answer"]
    assert answer["finished"] in ("complete", "cut")
    assert answer["timings"].keys() >= {
        "retrieval_s",
        "first_token_s",
        "total_s",
        "prompt_tokens",
        "answer_tokens",
        "tokens_per_second",
    }
    assert answer["context"].keys() >= {"window", "sent_tokens", "counted_tokens", "parts", "left_out"}
    assert all(s["support"] in ("quoted", "partial", "none") for s in answer["sentences"])
    for citation in answer["citations"]:
        assert citation.keys() >= {"number", "document_id", "document", "page", "quote", "start", "end", "boxes"}
        text = stocked.page(citation["document_id"], citation["page"]).text
        assert text[citation["start"] : citation["end"]] == citation["quote"]
    status, lines, err = run("ask", question)
    assert status == 0
    assert lines[0]
    assert "Searched" in err
    assert " s · first word after " in err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--profile", "startr"], "'starter'"),
        (["--backend", "llama.cp", "--model", "x"], "'llama.cpp'"),
        (["--model", "smollm3"], "smollm2"),
        (["--document", "recipe.txt"], "'recipes.txt'"),
    ],
)
def test_asking_with_an_unknown_name_names_what_there_is(run, stocked, argv, named):
    """Status 1, nothing on stdout."""
    status, out, err = run("ask", "What?", *argv)
    assert (status, out) == (1, [])
    assert named in err


def test_asking_an_empty_library_says_what_to_do(run):
    """Without loading anything."""
    status, out, err = run("ask", "What?")
    assert (status, out) == (1, [])
    assert "docmind add" in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_was_written(stocked, in_child):
    """The first Ctrl-C ends the answer with status 130; what was written is on the screen and in the last row."""
    environment = in_child.environment | {"DOCMIND_HOME": str(stocked.config.home)}
    question = (
        "Tell me everything about the harbour, the quay, the pilots, the boats and the herring, one after the other."
    )
    with subprocess.Popen(
        [in_child.python, "-m", "docmind", "ask", question, "--json", "--chat", "c1"],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        rows = []
        for line in child.stdout:
            rows.append(json.loads(line))
            if "delta" in rows[-1]:
                child.send_signal(signal.SIGINT)
                break
        watchdog = threading.Timer(120, child.kill)
        watchdog.start()
        rows += [json.loads(line) for line in child.stdout]
        err = child.stderr.read()
        assert child.wait() == 130, err
        watchdog.cancel()
    assert "Traceback" not in err
    answer = rows[-1]
    assert answer["finished"] == "stopped"
    assert answer["answer"]
    assert "".join(row["delta"] for row in rows if "delta" in row) == answer["answer"]
    with store.reading(Library(stocked.config).path) as db:
        assert [tuple(row) for row in db.execute("SELECT role, finished FROM messages ORDER BY id")] == [
            ("user", None),
            ("assistant", "stopped"),
        ]
        assert db.execute("SELECT state FROM runs WHERE kind = 'answer'").fetchone()[0] == "stopped"


def test_settings_say_who_may_be_sent_text(run, run_json):
    """Allowed, taken back, and all of it switched off."""
    (row,) = run_json("settings")[1]
    assert row == {
        "local_only": False, "allowed": [], "backend_order": [], "embedding": "", "embedding_options": {}
    }  # fmt: skip
    status, rows, _ = run_json("settings", "allow", "http://192.168.1.20:11434/api")
    assert (status, rows[0]["allowed"]) == (0, ["http://192.168.1.20:11434"])
    assert "your network" in run("settings")[1][1]
    assert run_json("settings", "forbid", "http://192.168.1.20:11434")[1][0]["allowed"] == []
    assert run_json("settings", "local-only", "on")[1][0]["local_only"]
    assert not run_json("settings", "local-only", "off")[1][0]["local_only"]
    for wrong in (["allow"], ["allow", "http://"], ["local-only"], ["local-only", "perhaps"]):
        status, _, err = run("settings", *wrong)
        assert (status, len(err.splitlines())) == (1, 2)


def test_a_key_is_not_kept_where_nothing_guards_it(run, run_json, monkeypatch):
    """And is never an argument of a command."""
    import io

    import keyring
    from keyring.backends import fail

    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())
    try:
        monkeypatch.setattr("sys.stdin", io.StringIO("sk-canary\n"))
        status, out, err = run("keys", "keep", "https://api.example.com")
        assert (status, out) == (1, [])
        assert "sk-canary" not in err
        assert run_json("keys") == (0, [{"keyring": None}], "")
        assert run("keys", "forget", "https://api.example.com")[0] == 0
    finally:
        keyring.set_keyring(before)
# Models from a hub


@pytest.fixture
def hub(monkeypatch):
    """A hub with a small file that begins like a model."""
    from servers.hub import serve
    from test_download import CONTENT

    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.add("maker/tiny", "tiny-Q4_K_M.gguf", CONTENT)
        running.add("maker/tiny", "tiny-Q8_0.gguf", CONTENT)
        yield running


def test_a_repository_is_listed_with_what_fits(run, run_json, hub):
    """Nothing is fetched."""
    status, rows, _ = run_json("download", "maker/tiny")
    assert status == 0
    assert [row["file"] for row in rows] == ["tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"]
    assert all(has_keys(row, "download") for row in rows)
    assert {row["fits"]["verdict"] for row in rows} <= {"in_memory", "on_gpu"}
    _, lines, _ = run("download", "maker/tiny")
    assert "Fits" in lines[1]
    assert len(hub.asked("files")) == 2  # the beginning of one model, each time


def test_a_model_is_downloaded_and_can_be_seen(run, run_json, hub, tmp_path):
    """Whether it fits comes first, then the steps, then the path; a second time it is there already."""
    status, rows, _ = run_json("download", "maker/tiny", "q4_k_m")
    assert status == 0
    assert rows[0]["fits"]["sentence"]
    assert rows[-2]["progress"]["done"] == rows[-2]["progress"]["total"] == rows[-1]["size_bytes"]
    assert rows[-1]["path"] == str(tmp_path / "home" / "models" / "tiny-Q4_K_M.gguf")
    assert len(rows[-1]["sha256"]) == 64
    status, lines, err = run("download", f"{hub.url}/maker/tiny/resolve/main/tiny-Q4_K_M.gguf")
    assert (status, lines[0]) == (0, rows[-1]["path"])
    assert "Fits" in err


def test_a_download_that_fails_says_why(run, hub):
    """On one line, with the remedy."""
    status, lines, err = run("download", "maker/tiny", "Q5")
    assert (status, lines) == (1, [])
    assert "tiny-Q8_0.gguf" in err
    assert "Traceback" not in err
