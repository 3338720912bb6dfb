"""A backend that failed again and again rests, while another model can answer."""

from __future__ import annotations

import pytest

from docmind import breaker
from docmind.answer import ask
from docmind.errors import BackendError, BackendUnavailable
from docmind.profiles import Profile

pytestmark = pytest.mark.usefixtures("end_models")
QUAY = "How much did the repairs of the north quay cost?"
HERE = Profile("", "scripted", "script")


@pytest.fixture
def clock(monkeypatch):
    """The time, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(breaker.time, "monotonic", lambda: now[0])
    return now


def fail(times, reason="unreachable", profile=HERE):
    """So many failures."""
    for _ in range(times):
        breaker.note(profile, BackendError("no", "hint", reason=reason))


def test_it_rests_after_some_failures_in_a_row_and_for_a_while(clock):
    """Then one question tries it again; a failure begins a new rest, an answer ends the matter."""
    fail(breaker.FAILURES - 1)
    assert breaker.resting(HERE) is None
    fail(1)
    rest = breaker.resting(HERE)
    assert rest.reason == "resting"
    assert rest.hint
    clock[0] += breaker.REST_SECONDS + 1
    assert breaker.resting(HERE) is None
    fail(1)
    assert breaker.resting(HERE)
    clock[0] += breaker.REST_SECONDS + 1
    breaker.note(HERE, None)
    fail(breaker.FAILURES - 1)
    assert breaker.resting(HERE) is None


def test_an_answer_between_two_failures_begins_the_count_anew(clock):
    """In a row means in a row."""
    fail(breaker.FAILURES - 1)
    breaker.note(HERE, None)
    fail(breaker.FAILURES - 1)
    assert breaker.resting(HERE) is None


@pytest.mark.parametrize("reason", ["model_missing", "context_too_long", "key_rejected", "consent_missing", "busy"])
def test_what_the_person_has_to_mend_is_no_trouble_of_the_backend(reason):
    """Asked rightly, it answers at once."""
    fail(10, reason)
    assert breaker.resting(HERE) is None


def test_another_address_is_another_server():
    """One dead machine does not speak for the others."""
    far = Profile("", "scripted", "script", options={"url": "http://192.168.1.20:1"})
    fail(3, profile=far)
    assert breaker.resting(far)
    assert breaker.resting(HERE) is None


def test_a_resting_backend_is_not_asked_when_another_can_answer(stocked, script):
    """The note says why; the starter answers."""
    script.append("Answer: never asked.")
    fail(3)
    answer = list(ask(stocked, QUAY, backend="scripted", model="script"))[-1]
    assert (answer.backend, answer.finished) == ("llama.cpp", "complete")
    assert [fallback["reason"] for fallback in answer.fallbacks] == ["resting"]
    assert script == ["Answer: never asked."]


def test_the_only_one_is_asked_all_the_same(stocked, script):
    """The person chose it, and has no other."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alone.toml").write_text('backend = "scripted"\nmodel = "script"\nfallbacks = []\n', encoding="utf-8")
    fail(5)
    script.append("The repairs cost 3.7 million euros.")
    answer = list(ask(stocked, QUAY, profile="alone"))[-1]
    assert (answer.finished, answer.backend) == ("complete", "scripted")
    assert breaker.resting(HERE) is None, "an answer ends the matter"


def test_failures_of_answers_are_counted(stocked, script):
    """Three dead ones, and the fourth question is not held up by it."""
    for _ in range(breaker.FAILURES):
        script.append(BackendUnavailable("It does not answer.", "Start it."))
        assert list(ask(stocked, QUAY, backend="scripted", model="script"))[-1].backend == "llama.cpp"
    answer = list(ask(stocked, QUAY, backend="scripted", model="script"))[-1]
    assert [fallback["reason"] for fallback in answer.fallbacks] == ["resting"]
