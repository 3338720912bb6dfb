"""Checks that explain themselves, on a healthy machine and on others."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from docmind import store
from docmind.config import Config
from docmind.doctor import run_checks


def checks_of(config):
    """Check by name."""
    return {check.check: check for check in run_checks(config)}


def test_a_healthy_installation_passes_every_check(stocked):
    """With the real starter model, run for one token."""
    checks = checks_of(stocked.config)
    assert [check for check in checks.values() if not check.ok] == []
    assert list(checks) == [
        "version",
        "packages",
        "data folder",
        "library",
        "disk",
        "embedding",
        "models",
        "profiles",
        "answering",
        "log",
    ]
    assert "3 documents, 5 pages" in checks["library"].detail
    assert "missing" not in checks["packages"].detail
    assert "tokens/s" in checks["answering"].detail


def test_a_library_that_does_not_exist_is_not_made(tmp_path):
    """Looking changes nothing."""
    config = Config(home=tmp_path / "nowhere")
    assert checks_of(config)["library"].detail == "empty: no documents yet"
    assert not config.home.exists()


def test_a_damaged_library_is_one_failed_check_with_a_hint(stocked):
    """The other checks still run."""
    store.forget(stocked.path)
    stocked.path.write_bytes(b"no database" * 1000)
    checks = checks_of(stocked.config)
    assert not checks["library"].ok
    assert "library.sqlite3" in checks["library"].hint
    assert checks["answering"].ok


def test_a_library_damaged_inside_is_noticed(stocked):
    """SQLite opens it, and its own check finds the fault."""
    with closing(sqlite3.connect(stocked.path)) as db:
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'passages_by_page'").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    with stocked.path.open("r+b") as file:
        file.seek((page - 1) * size + 8)
        file.write(b"\xff" * 200)
    check = checks_of(stocked.config)["library"]
    assert not check.ok
    assert check.hint


def test_a_missing_embedding_model_is_said_to_be(config, tmp_path, monkeypatch):
    """With the variable that names it."""
    monkeypatch.setenv("DOCMIND_EMBEDDING", str(tmp_path))
    check = checks_of(config)["embedding"]
    assert not check.ok
    assert "DOCMIND_EMBEDDING" in check.detail


def test_a_broken_profile_is_said_to_be(config):
    """Its own check fails, with the file's name; answering with another profile still works."""
    (config.home / "models").mkdir(parents=True)
    (config.home / "models" / "bad.toml").write_text("x = 1")
    checks = checks_of(config)
    assert not checks["profiles"].ok
    assert "bad.toml" in checks["profiles"].detail
    assert checks["answering"].ok
