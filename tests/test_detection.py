"""What is there of every backend: side by side, kept for a while, and nobody waits for a slow one."""

from __future__ import annotations

import sys
import threading

import pytest
from waiting import PATIENCE_SECONDS, wait_until

from docmind import detection
from docmind.backends import REGISTRY, Detection
from docmind.errors import BackendUnavailable

BACKEND = """
from docmind.backends import Detection
LABEL = "Parrot"
asked, may_answer, failure = [], None, None
def detect(config, options=None):
    asked.append(options)
    if failure is not None:
        raise failure
    if may_answer is not None:
        may_answer.wait()
    return Detection("parrot", LABEL, True, None, None, None, str(len(asked)), ())
"""


@pytest.fixture
def parrot(tmp_path, monkeypatch):
    """A second backend that answers when it may."""
    (tmp_path / "parrot_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parrot_backend", raising=False)
    for name in list(REGISTRY):
        if name != "llama.cpp":
            monkeypatch.delitem(REGISTRY, name)
    monkeypatch.setitem(REGISTRY, "parrot", "parrot_backend")
    import parrot_backend

    return parrot_backend


def test_all_backends_are_there_in_the_order_of_the_registry(config, parrot):
    """With what each says of itself."""
    found = detection.detect_all(config)
    assert [one.backend for one in found] == list(REGISTRY)
    assert all(isinstance(one, Detection) for one in found)
    assert detection.is_complete(config)


def test_a_slow_backend_holds_nobody_up_and_counts_when_it_answers(config, parrot):
    """Until then it is said to be asked still."""
    parrot.may_answer = threading.Event()
    detection.detect_all(config, wait_seconds=0)
    try:
        wait_until(lambda: detection.detect_all(config, wait_seconds=0)[0].available)
        slow = detection.detect_all(config, wait_seconds=0)[1]
        assert (slow.label, slow.available, slow.reason) == ("Parrot", False, "stalled")
        assert slow.hint
        assert not detection.is_complete(config)
    finally:
        parrot.may_answer.set()
    wait_until(lambda: detection.is_complete(config))
    assert detection.detect_all(config, wait_seconds=0)[1].available
    assert len(parrot.asked) == 1


def test_what_was_said_is_kept_until_it_is_asked_anew(config, parrot):
    """By age, or when it is to be forgotten."""
    patiently = {"wait_seconds": PATIENCE_SECONDS}
    versions = [detection.detect_all(config, **patiently)[1].version for _ in range(3)]
    versions.append(detection.detect_all(config, max_age_seconds=0, **patiently)[1].version)
    detection.forget()
    versions.append(detection.detect_all(config, **patiently)[1].version)
    assert versions == ["1", "1", "1", "2", "3"]


def test_one_that_is_asked_anew_is_listed_as_it_was_until_it_answers(config, parrot):
    """A page drawn meanwhile neither waits nor takes it for absent."""
    before = detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    parrot.may_answer = threading.Event()
    try:
        assert detection.detect_all(config, max_age_seconds=0) == before
        wait_until(lambda: len(parrot.asked) == 2)
        assert not detection.is_complete(config)
        assert detection.detect_all(config) == before
    finally:
        parrot.may_answer.set()
    wait_until(lambda: detection.is_complete(config))
    assert detection.detect_all(config)[1].version == "2"


def test_a_backend_at_a_place_of_its_own_is_asked_once_too(config, parrot):
    """With the profile's options, beside what it says without them."""
    options = {"url": "http://127.0.0.1:9"}
    said = [detection.detect_one(config, "parrot", options, wait_seconds=PATIENCE_SECONDS) for _ in range(2)]
    assert said[0] == said[1]
    assert parrot.asked == [options]
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    assert parrot.asked == [options, None]


def test_a_backend_that_fails_is_listed_with_its_reason(config, parrot):
    """The others are as they are."""
    parrot.failure = BackendUnavailable("Parrot is asleep.", "Wake it.", reason="unreachable")
    found = detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    assert (found[1].available, found[1].reason, found[1].hint) == (False, "unreachable", "Wake it.")
    assert found[0].available


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_backend_with_a_fault_of_its_own_is_listed_too(config, parrot):
    """What nobody foresaw is printed by Python, and hides no other backend."""
    parrot.failure = ZeroDivisionError()
    found = detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    assert (found[1].available, found[1].reason) == (False, "backend_failed")
    assert found[0].available
