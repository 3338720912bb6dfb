"""Fetching models from a hub, over real sockets: what arrives is what was named, and everything else is refused."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
import traceback

import pytest
from servers.hub import Fault, echo, serve
from waiting import wait_until

from docmind import download as downloads
from docmind import keys
from docmind.backends.fits import Room
from docmind.errors import BackendBusy, BackendError, BackendUnavailable, ModelDamaged, ModelNotFound

NAME = "tiny-Q4_K_M.gguf"


def gguf(layers=4, size=3_000_000, seed=1):
    """The beginning of a small model, and bytes."""
    values = {"general.architecture": b"llama", "llama.block_count": layers, "llama.embedding_length": 64,
              "llama.attention.head_count": 4, "llama.context_length": 4096}  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        head += struct.pack("<Q", len(key)) + key.encode()
        if isinstance(value, bytes):
            head += struct.pack("<IQ", 8, len(value)) + value
        else:
            head += struct.pack("<II", 4, value)
    return head + bytes((seed * 7 + i) % 251 for i in range(1000)) * (size // 1000)


CONTENT = gguf()


@pytest.fixture
def hub(monkeypatch):
    """A hub with one repository."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.add("maker/tiny", NAME, CONTENT)
        running.add("maker/tiny", "README.md", b"# Tiny")
        yield running


@pytest.fixture
def fetch(config):
    """Fetches a model; the path, with the steps that were reported in `fetch.steps`."""

    def fetch(source="maker/tiny", file=NAME, stop=None, progress=None):
        steps = fetch.steps = []

        def step(told):
            steps.append(told)
            if progress:
                progress(told)

        model = downloads.find(config, source, file)
        return downloads.download(config, model, progress=step, stop=stop or threading.Event())

    return fetch


def failure(call, kind=BackendError):
    """The error a call ends with; it has a remedy."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    return caught.value


def left(config):
    """What is in the folder."""
    return sorted(path.name for path in config.model_folders[0].iterdir())


# What there is


def test_a_repository_lists_its_models_with_size_and_checksum(hub, config):
    """Parts are one model; projectors, other files and models without all their parts are none."""
    for number in (1, 2):
        hub.add("maker/tiny", f"big/big-0000{number}-of-00002.gguf", CONTENT)
    hub.add("maker/tiny", "lost-00001-of-00003.gguf", CONTENT)
    hub.add("maker/tiny", "mmproj-tiny-f16.gguf", CONTENT)
    big, tiny = downloads.models_of(config, "maker/tiny")
    assert (big.name, big.size_bytes, [file.name for file in big.files]) == (
        "big", 2 * len(CONTENT), ["big/big-00001-of-00002.gguf", "big/big-00002-of-00002.gguf"],
    )  # fmt: skip
    assert (tiny.name, tiny.size_bytes) == ("tiny-Q4_K_M", len(CONTENT))
    assert tiny.files[0].sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_part_of_a_name_is_enough_when_it_names_one(hub, config):
    """Otherwise the error names those there are."""
    hub.add("maker/tiny", "tiny-Q8_0.gguf", CONTENT)
    assert downloads.find(config, "maker/tiny", "q8_0").name == "tiny-Q8_0"
    for wanted in ("tiny", "Q5", None):
        error = failure(lambda wanted=wanted: downloads.find(config, "maker/tiny", wanted), ModelNotFound)
        assert NAME in error.hint


@pytest.mark.parametrize("repository", ["tiny", "../etc/passwd", "a/b/c", "a/..", "maker/tiny?x", "http:/x", "a b/c"])
def test_what_is_no_repository_is_refused_before_anything_is_asked(hub, repository, config):
    """With the form it should have."""
    assert failure(lambda: downloads.models_of(config, repository)).reason == "invalid_option"
    assert hub.requests == []


@pytest.mark.parametrize(
    "listing",
    [b"<html>", b"{}", b"[" * 100_000, b"\xff", b'[{"type": "file", "path": 3}, {"type": "file", "path": "x.gguf"}, 7]',
     b'[{"type": "file", "path": "../../x.gguf", "size": -1, "lfs": "x"}]', b"[" + b'"x",' * 3_000_000 + b"1]"],
    ids=["html", "object", "deep", "bytes", "odd", "path", "giant"],
)  # fmt: skip
def test_a_list_that_is_none_is_an_error_or_empty(hub, listing, config):
    """Never anything else; what has no size is listed without."""
    hub.listing = listing
    try:
        found = downloads.models_of(config, "maker/tiny")
    except BackendError as error:
        assert error.reason == "bad_response"  # noqa: PT017 - either outcome is right
    else:
        assert [(model.name, model.size_bytes) for model in found] in ([], [("x", None)])


def test_a_repository_that_is_not_there_or_gated_says_what_to_do(hub, monkeypatch, config):
    """A token of the person's goes to the hub alone, and only after it refused."""
    assert "owner" not in failure(lambda: downloads.models_of(config, "maker/none"), ModelNotFound).hint
    hub.token = "hf_secret"
    error = failure(lambda: downloads.models_of(config, "maker/tiny"))
    assert (error.reason, "HF_TOKEN" in error.hint) == ("key_rejected", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    before = len(hub.requests)
    downloads.look(config, downloads.find(config, "maker/tiny", NAME))
    sent = [headers.get("authorization") for _, _, headers in hub.requests[before:]]
    assert sent == [None, "Bearer hf_secret", None, "Bearer hf_secret", None]


TOKEN = "hf_CANARYabcdefghijklmnopqrstuvwxyz"


def test_a_hub_that_repeats_the_token_is_quoted_without_it(hub, monkeypatch, config):
    """Instead of a list or of a file, or in where it leads; and no half of it where the quotation is cut."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(keys, "_given", set())
    hub.token, hub.is_echoing = TOKEN, True
    url = f"{hub.url}/maker/tiny/resolve/main/{NAME}"

    def told(call):
        error = failure(call)
        assert hub.requests[-1][2]["authorization"] == f"Bearer {TOKEN}"
        assert TOKEN[:9] not in "".join(traceback.format_exception(error)) + error.hint
        return str(error)

    assert "authorization: Bearer (key)" in told(lambda: downloads.models_of(config, "maker/tiny"))
    size = len(echo(hub.requests[-1][2]))
    model = downloads.HubModel("tiny", (downloads.HubFile(url, NAME, size, None),))
    said = told(lambda: downloads.download(config, model, progress=lambda _: None, stop=threading.Event()))
    assert "authorization: Bearer (key)" in said
    hub.is_echoing = False
    hub.faults[NAME] = Fault(redirect=f"gopher://127.0.0.1/{TOKEN}")
    assert "/(key)" in told(lambda: downloads.look(config, downloads.find(config, url)))


# Does it fit, before it is fetched


def test_whether_it_fits_is_told_from_its_first_bytes(hub, config):
    """Half a megabyte of it is asked for, and no more."""
    model, header = downloads.look(config, downloads.find(config, "maker/tiny", NAME))
    assert (header.layers, header.context_window, model.size_bytes) == (4, 4096, len(CONTENT))
    assert hub.requests[-1][2]["range"] == f"bytes=0-{downloads.HEAD_BYTES - 1}"
    fit = downloads.fit(config, model, Room(0, 0, 0, 10**9), window=2048)
    assert (fit.verdict, fit.layers, fit.window) == ("in_memory", 4, 2048)
    assert downloads.fit(config, model, Room(0, 0, 0, 10**6)).verdict == "too_large"


def test_what_is_no_gguf_is_known_before_it_is_fetched(hub, config):
    """A page, or another kind of file of that name."""
    hub.add("maker/tiny", "fake.gguf", b"PK\x03\x04" + b"x" * 5000)
    assert failure(lambda: downloads.look(config, downloads.find(config, "maker/tiny", "fake.gguf")), ModelDamaged)


# Fetching


def test_a_model_is_fetched_whole_and_its_checksum_remembered(hub, fetch, config):
    """It lies in the person's folder under its own name, and a second time nothing is fetched."""
    path = fetch()
    assert path == config.model_folders[0] / NAME
    assert path.read_bytes() == CONTENT
    assert left(config) == [NAME, f"{NAME}.sha256"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert (path.parent / f"{NAME}.sha256").read_text() == f"{sha256}  {NAME}\n"
    assert downloads.remembered_sha256(path) == sha256
    last = fetch.steps[-1]
    assert (last.doing, last.done, last.total) == ("downloading", len(CONTENT), len(CONTENT))
    assert [step.done for step in fetch.steps] == sorted(step.done for step in fetch.steps)
    before = len(hub.asked("files"))
    assert fetch() == path
    assert len(hub.asked("files")) == before


def test_a_cut_in_the_middle_goes_on_where_it_was(hub, fetch, config):
    """The part is kept and only the rest is asked for; what was cut says so."""
    hub.faults[NAME] = Fault(cut_after=1_200_000, times=1)
    error = failure(fetch, BackendUnavailable)
    assert "kept" in error.hint
    kept = (config.model_folders[0] / f"{NAME}.part").stat().st_size
    assert 0 < kept <= 1_200_000
    path = fetch()
    assert path.read_bytes() == CONTENT
    assert hub.requests[-1][2]["range"] == f"bytes={kept}-"
    assert fetch.steps[0].doing == "checking"
    assert left(config) == [NAME, f"{NAME}.sha256"]


def test_an_address_of_a_file_works_as_well(hub, fetch):
    """With the checksum that the hub names on the way."""
    path = fetch(f"{hub.url}/maker/tiny/blob/main/{NAME}", None)
    assert path.read_bytes() == CONTENT
    hub.oids["maker/tiny", NAME] = "0" * 64
    path.unlink()
    assert failure(lambda: fetch(f"{hub.url}/maker/tiny/resolve/main/{NAME}", None)).reason == "wrong_checksum"


def test_without_a_checksum_a_part_goes_on_by_its_etag(hub, fetch, config):
    """Some addresses name none; the file is still whole, and what it was is remembered."""
    hub.names_checksums = False
    hub.faults[NAME] = Fault(cut_after=1_000_000, times=1)
    failure(fetch, BackendUnavailable)
    path = fetch()
    assert hub.requests[-1][2]["if-range"]
    assert path.read_bytes() == CONTENT
    assert downloads.remembered_sha256(path) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("names_checksums", [True, False])
def test_a_file_that_changed_between_two_halves_begins_anew(hub, fetch, names_checksums):
    """The halves of two files are never put together."""
    hub.names_checksums = names_checksums
    hub.faults[NAME] = Fault(cut_after=1_000_000, times=1)
    failure(fetch, BackendUnavailable)
    changed = gguf(seed=2)
    hub.add("maker/tiny", NAME, changed)
    assert fetch().read_bytes() == changed


def test_a_server_that_gives_no_parts_begins_anew(hub, fetch):
    """It answers with the whole file."""
    hub.faults[NAME] = Fault(cut_after=1_000_000, times=1)
    failure(fetch, BackendUnavailable)
    hub.faults[NAME] = Fault(ignores_range=True)
    assert fetch().read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_removed(hub, fetch, config):
    """Nothing of it is left."""
    hub.oids["maker/tiny", NAME] = "0" * 64
    assert failure(fetch).reason == "wrong_checksum"
    assert left(config) == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(html=True), "bad_response"),
        (Fault(endless=True), "bad_response"),
        (Fault(status=404), "model_missing"),
        (Fault(status=500), "bad_response"),
        (Fault(status=429), "rate_limited"),
        (Fault(headers=(("Content-Encoding", "gzip"),)), "bad_response"),
    ],
    ids=["html", "endless", "gone", "broken", "too often", "packed"],
)
def test_what_goes_wrong_is_an_error_and_leaves_nothing_that_looks_like_a_model(hub, fetch, config, fault, reason):
    """A page, more than was announced, a status, packed bytes."""
    hub.faults[NAME] = fault
    assert failure(fetch).reason == reason
    assert left(config) == []


def test_a_captive_portal_does_not_cost_what_was_fetched(hub, fetch, config):
    """A page in place of the rest: the first half stays."""
    hub.faults[NAME] = Fault(cut_after=1_000_000, times=1)
    failure(fetch, BackendUnavailable)
    kept = left(config)
    for fault in (Fault(html=True), Fault(wrong_range=True), Fault(status=503)):
        hub.faults[NAME] = fault
        failure(fetch)
        assert left(config) == kept
    del hub.faults[NAME]
    assert fetch().read_bytes() == CONTENT


def test_a_full_disk_is_known_before_anything_is_fetched(hub, fetch, config, monkeypatch):
    """With the bytes that are missing."""
    monkeypatch.setattr(downloads, "SPARE_BYTES", 1 << 60)
    assert failure(fetch).reason == "disk_full"
    assert left(config) == []
    assert hub.asked("files") == []


def test_a_stop_ends_it_within_a_second_and_the_next_time_goes_on(hub, fetch, config):
    """Also while nothing comes."""
    hub.faults[NAME] = Fault(hang_after=1_000_000)
    stop = threading.Event()
    stopped_at = []

    def progress(told):
        if told.done > 700_000 and not stop.is_set():
            stopped_at.append(time.monotonic())
            stop.set()

    assert fetch(stop=stop, progress=progress) is None
    assert time.monotonic() - stopped_at[0] < 1
    del hub.faults[NAME]
    assert fetch().read_bytes() == CONTENT
    assert hub.requests[-1][2]["range"].startswith("bytes=")


def test_a_hub_that_falls_silent_is_given_up_and_what_came_is_kept(hub, fetch, config, monkeypatch):
    """After half a minute, for a real one."""
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.5)
    hub.faults[NAME] = Fault(hang_after=1_000_000)
    assert "kept" in failure(fetch, BackendUnavailable).hint
    assert (config.model_folders[0] / f"{NAME}.part").stat().st_size > 0


def test_a_hub_that_is_not_there_is_an_error_with_a_remedy(monkeypatch, config):
    """And no wait."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert failure(lambda: downloads.find(config, "maker/tiny", NAME), BackendUnavailable)


def test_a_model_is_fetched_once_at_a_time(hub, fetch, config):
    """A second try says so, from wherever it comes."""
    hub.faults[NAME] = Fault(hang_after=1_000_000)
    stop = threading.Event()
    steps = []
    thread = threading.Thread(target=lambda: fetch(stop=stop, progress=steps.append))
    thread.start()
    wait_until(lambda: steps)
    assert failure(fetch, BackendBusy)
    stop.set()
    thread.join()


def test_all_parts_of_a_model_are_fetched(hub, fetch, config):
    """One progress over all of them; a cut in the second keeps the first."""
    names = [f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, name in enumerate(names):
        hub.add("maker/tiny", name, gguf(seed=number))
    hub.faults[names[1]] = Fault(cut_after=500_000, times=1)
    failure(lambda: fetch(file=names[0]), BackendUnavailable)
    path = fetch(file=names[0])
    assert path.name == names[0]
    assert [(path.parent / name).read_bytes() == gguf(seed=n) for n, name in enumerate(names)] == [True, True]
    assert fetch.steps[-1].done == fetch.steps[-1].total == 2 * len(CONTENT)


def test_another_file_of_that_name_is_never_overwritten(hub, fetch, config):
    """The person's own files come first."""
    path = config.model_folders[0] / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert failure(fetch).reason == "already_there"
    path.write_bytes(b"m" * len(CONTENT))
    assert failure(fetch).reason == "already_there"
    assert path.read_bytes() == b"m" * len(CONTENT)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("sub/folder/a.gguf", "a.gguf"), ("CON.gguf", "_CON.gguf"), ("a:b?.gguf", "a_b_.gguf"), ("..\\x.gguf", "x.gguf"),
     ("\u202egnp.gguf", "gnp.gguf")],
)  # fmt: skip
def test_a_name_is_made_safe(hub, fetch, config, name, kept):
    """One folder, no reserved names, nothing that turns the reading direction."""
    hub.add("maker/tiny", name, CONTENT)
    if ".." in name:
        assert failure(lambda: fetch(file=name), ModelNotFound)
        return
    assert fetch(file=name) == config.model_folders[0] / kept


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(hub, fetch, config):
    """A file stands where the folder should be."""
    config.home.mkdir(parents=True)
    config.model_folders[0].write_text("not a folder")
    assert failure(fetch).reason == "not_written"


# Where it may lead


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/x.gguf",
        "https://169.254.169.254/x.gguf",
        "https://[fe80::1]/x.gguf",
        "https://192.168.1.1/x.gguf",
        "https://10.0.0.1/x.gguf",
        "https://[::ffff:10.0.0.1]/x.gguf",
        "https://0.0.0.0/x.gguf",
        "http://192.0.2.1/x.gguf",
        "ftp://127.0.0.1/x.gguf",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_to_a_place_one_must_not_ask_is_refused(hub, fetch, config, target):
    """Nothing is sent there: a connection to another machine would be an error of the test."""
    hub.faults[NAME] = Fault(redirect=target)
    assert failure(fetch).reason in ("address_refused", "invalid_option")
    assert left(config) == []


def test_redirects_without_end_are_refused(hub, fetch):
    """After a few steps."""
    hub.faults[NAME] = Fault(redirect=f"{hub.url}/maker/tiny/resolve/main/{NAME}")
    assert failure(fetch).reason == "address_refused"
    assert len(hub.asked("hub", "resolve")) < 10


@pytest.mark.parametrize(
    ("url", "places", "first", "is_safe"),
    [
        ("https://cdn.example/x", {"internet"}, {"internet"}, True),
        ("http://cdn.example/x", {"internet"}, {"internet"}, False),
        ("https://cdn.example/x", {"internet", "this device"}, {"internet"}, False),
        ("https://cdn.example/x", {"this device"}, {"internet"}, False),
        ("https://cdn.example/x", {"local network"}, {"internet"}, False),
        ("https://mirror.lan/x", {"local network"}, {"local network"}, True),
        ("https://cdn.example/x", {"nowhere"}, {"nowhere"}, False),
        ("http://127.0.0.1/x", {"this device"}, {"this device"}, True),
    ],
)
def test_where_a_request_may_go(url, places, first, is_safe):
    """By https, and never nearer than the first address."""
    assert (downloads._unsafe(url, places, first) == "") is is_safe


def test_an_address_without_tls_is_refused(config):
    """Before a connection."""
    stop = threading.Event()
    model = downloads.find(config, "http://192.0.2.1/x.gguf")
    assert failure(lambda: downloads.download(config, model, progress=print, stop=stop)).reason == "address_refused"


@pytest.mark.parametrize(
    "url", ["https://x/y.bin", "https://x/a-00002-of-00002.gguf", "https://x/", "ftp://x/mmproj.gguf"]
)
def test_an_address_that_names_no_model_is_refused(url, config):
    """With the form it should have."""
    assert failure(lambda: downloads.find(config, url)).reason == "invalid_option"
