"""What is there of every backend: side by side, kept for a while, and nobody waits for a slow one."""

from __future__ import annotations

import sys
import threading

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
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
    before = dict(REGISTRY)
    REGISTRY.clear()
    REGISTRY.update({"llama.cpp": before["llama.cpp"], "parrot": "parrot_backend"})
    import parrot_backend

    yield parrot_backend
    REGISTRY.clear()
    REGISTRY.update(before)  # in its order, which monkeypatch would not give back


@pytest.fixture
def clean_streamlit():
    """Its caches hold the configuration of one test."""
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


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


def test_one_that_is_asked_anew_is_listed_as_it_was_until_it_answers(config, parrot, monkeypatch):
    """A page drawn meanwhile neither waits nor takes it for absent."""
    monkeypatch.setattr(detection, "DEADLINE_SECONDS", 10 * PATIENCE_SECONDS)
    before = detection.detect_all(config)
    drawn = detection.said(config)
    parrot.may_answer = threading.Event()
    found = []
    page = threading.Thread(target=lambda: found.append(detection.detect_all(config, max_age_seconds=0)), daemon=True)
    try:
        page.start()
        wait_until(lambda: found)
        assert found == [before]
        wait_until(lambda: len(parrot.asked) == 2)
        assert not detection.is_complete(config)
        assert detection.detect_all(config) == before
        assert detection.said(config) == drawn
    finally:
        parrot.may_answer.set()
    wait_until(lambda: detection.is_complete(config))
    assert detection.detect_all(config)[1].version == "2"
    assert detection.said(config) != drawn


def test_one_that_does_not_answer_any_more_is_not_listed_as_it_was_for_ever(config, parrot):
    """Once is enough."""
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    parrot.may_answer = threading.Event()
    try:
        shown = [detection.detect_all(config, max_age_seconds=0, wait_seconds=0)[1] for _ in range(3)]
    finally:
        parrot.may_answer.set()
    assert [one.reason for one in shown] == [None, "stalled", "stalled"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_while_it_is_asked_anew_is_what_counts_from_then_on(config, parrot):
    """Not what it said before, the next time."""
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    parrot.failure = ZeroDivisionError()
    shown = [detection.detect_all(config, max_age_seconds=0, wait_seconds=wait)[1] for wait in (PATIENCE_SECONDS, 0)]
    wait_until(lambda: detection.is_complete(config))
    assert [one.reason for one in shown] == ["backend_failed"] * 2


def test_a_backend_at_a_place_of_its_own_is_asked_once_too(config, parrot):
    """Beside what it says without one."""
    url = "http://127.0.0.1:9"
    said = [detection.detect_at(config, "parrot", url, wait_seconds=PATIENCE_SECONDS) for _ in range(2)]
    assert said[0] == said[1]
    assert parrot.asked == [{"url": url}]
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    assert parrot.asked == [{"url": url}, None]


def test_what_is_said_late_at_a_place_of_its_own_is_noticed(config, parrot):
    """A page that waits for it is drawn anew."""
    parrot.may_answer = threading.Event()
    try:
        assert detection.detect_at(config, "parrot", "http://127.0.0.1:9", wait_seconds=0).reason == "stalled"
        drawn = detection.said(config)
        assert not detection.is_complete(config)
    finally:
        parrot.may_answer.set()
    wait_until(lambda: detection.is_complete(config))
    assert detection.said(config) != drawn


def test_an_open_page_that_nobody_uses_asks_nobody(config, parrot, clean_streamlit):
    """It looks every second whether a slow backend has answered, however old the others' answers are."""
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    parrot.may_answer = threading.Event()
    detection.detect_at(config, "parrot", "http://127.0.0.1:9", wait_seconds=0)
    wait_until(lambda: len(parrot.asked) == 2)
    for asked in detection._asked.values():
        asked.started_at = -2 * detection.KEPT_SECONDS

    def script():
        from docmind import detection
        from pages.parts import frame
        from pages.parts.sidebar import watch_backends

        watch_backends(detection.said(frame.config()))

    try:
        app = AppTest.from_function(script, default_timeout=PATIENCE_SECONDS).run().run()
        assert not app.exception
        assert len(parrot.asked) == 2
    finally:
        parrot.may_answer.set()


def test_a_thread_that_cannot_be_started_is_tried_again(config, parrot, monkeypatch):
    """A system without room for one may have it a moment later."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no room")))
        with pytest.raises(RuntimeError, match="no room"):
            detection.detect_all(config)
    assert detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)[1].available


def test_whether_models_fit_is_not_all_known_while_a_backend_is_asked_anew(config, parrot):
    """Otherwise nobody looks again."""
    parrot.fit = lambda config, model: None
    try:
        parrot.may_answer = threading.Event()
        detection.detect_all(config, wait_seconds=0)
        assert detection.fits_of(config, "parrot") == ({}, False)
    finally:
        parrot.may_answer.set()
    wait_until(lambda: detection.is_complete(config))
    assert detection.fits_of(config, "parrot") == ({}, True)


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
