"""GGUF models from a hub: what a repository has, whether it fits here, and fetching it so that a bad one never arrives.

    model = find(config, "owner/repository", "Q4_K_M")   # or find(config, "https://…/name.gguf")
    model, header = look(config, model)                  # half a megabyte of it
    path = download(config, model, progress=…, stop=…)   # None: it was stopped; the next time it goes on there

A file grows as `NAME.gguf.part` and gets its name when it is whole and its SHA-256 is the one the hub names, which
stands in `NAME.gguf.sha256` from then on, as `sha256sum --check` reads it. A part goes on only if it belongs to the
same bytes: `NAME.gguf.part.from` says to which, by the hub's SHA-256 or the server's ETag.

*Why not `huggingface_hub`*, which is installed (2.4.0, read): `hf_hub_download` writes to a file with a random name
and deletes it when the transfer breaks, so a second call begins anew; it compares the size and never the SHA-256; it
follows redirects to any address and takes proxies and tokens from the environment; it is stopped only by an exception
from a progress bar. What is needed of a hub are two addresses, written down below.

*Where requests go*: to the hub (`HF_ENDPOINT`, else huggingface.co) or the address given, and to where these redirect,
which hubs do to the hosts that keep their files: by https only, and never to this machine, the local network or a
link-local address unless the first address was there. `HF_TOKEN` is sent to the hub alone, and only after it refused.

Source: huggingface.co/docs/hub/api (`/api/models/{repo}/tree/{revision}`, with `lfs.oid`, the SHA-256; `/resolve/` with
the header `X-Linked-ETag`); RFC 9110, sections 13.1.5 (If-Range) and 14 (Range).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from docmind import hardware
from docmind.backends import GGUF_BACKEND, Progress, backend
from docmind.backends.gguf_files import model_name, parts
from docmind.errors import BackendBusy, BackendError, BackendUnavailable, ModelNotFound
from docmind.keys import given_out

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx

    from docmind.backends.fits import Fit, Room
    from docmind.backends.gguf_header import GgufHeader
    from docmind.config import Config

HUB: Final = "https://huggingface.co"
HEAD_BYTES: Final = 512 << 10  # of a file, to see what it is: the sizes of a model stand at its very beginning
SPARE_BYTES: Final = 512 << 20  # left free on the disk
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0  # for an answer to begin, and between two pieces of it
_MOST_STEPS: Final = 6  # redirects, and once more with a token
_PIECE_BYTES: Final = 256 << 10
_AHEAD_BYTES: Final = 16 << 20  # received and not yet written: a slow disk slows the connection down
_MOST_FILES: Final = 2_000  # of a repository
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on a hub; None: not known yet."""

    url: str
    name: str  # as the hub calls it, with its folders
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A GGUF model on a hub: a file, or the parts of one in their order."""

    name: str  # as it will be called here
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int | None:
        """Of all its files together; None: not known yet."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


# What there is --------------------------------------------------------------------------------------------------------


def find(config: Config, source: str, file: str | None = None) -> HubModel:
    """A model by the address of its file, or by a repository and the name of a file in it or a part of that name.

    Raises:
        ModelNotFound: The repository is not there, or has no such file; the hint names those it has.
        BackendError: What was given is neither an address nor a repository, or the hub does not answer as one.
    """
    if "://" in source:
        return _at(source)
    models = models_of(config, source)
    wanted = (file or "").lower()
    named = [model for model in models if file in (model.name, model.files[0].name)]
    found = named or [model for model in models if wanted in model.files[0].name.lower()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(model.files[0].name for model in (found or models)[:20]) or "none"
    what = f"no file '{file}'" if not found else f"{len(found)} files" + (f" like '{file}'" if file else "")
    raise ModelNotFound(f"{source} has {what}.", f"Name one of: {names}.")


def models_of(config: Config, repository: str) -> tuple[HubModel, ...]:
    """The GGUF models of a repository, by name; vision projectors and later parts are no models.

    Raises:
        ModelNotFound: There is no such repository, or it is not open to us.
        BackendError: This is no name of a repository, or the hub does not answer as one.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise BackendError(
            f"'{repository[:200]}' is no repository.", "Write it as owner/name, or give the address of a .gguf file.",
            reason="invalid_option",
        )  # fmt: skip
    listing = _asked(_listing(config, f"{_hub()}/api/models/{repository}/tree/main?recursive=true"), repository)
    files = {}
    for entry in listing[:_MOST_FILES]:
        if (file := _file(repository, entry)) is not None:
            files[file.name] = file
    found = []
    for name, file in sorted(files.items()):
        path = PurePosixPath(name)
        called = model_name(Path(path.name))
        others = [str(path.with_name(part.name)) for part in parts(Path(path.name))[1:]]
        if called is not None and all(other in files for other in others):
            found.append(HubModel(called, (file, *(files[other] for other in others))))
    return tuple(found)


def _at(url: str) -> HubModel:
    """The model at an address; of one in parts, all of them."""
    from docmind.backends.careful_http import plain

    address = url.replace("/blob/", "/resolve/", 1) if url.startswith(f"{_hub()}/") else url
    try:
        name = Path(PurePosixPath(unquote(urlsplit(address).path)).name)
    except ValueError:  # an open bracket
        name = Path()
    called = model_name(name)
    if called is None:
        raise BackendError(
            f"'{plain(url)}' is no address of a model.", "It ends in .gguf; of a model in parts give the first.",
            reason="invalid_option",
        )  # fmt: skip
    others = [HubFile(urljoin(address, quote(part.name)), part.name, None, None) for part in parts(name)[1:]]
    return HubModel(called, (HubFile(address, name.name, None, None), *others))


def look(config: Config, model: HubModel) -> tuple[HubModel, GgufHeader]:
    """The same with the sizes and checksums that were missing, and what the beginning of its first file says.

    Raises:
        ModelDamaged: It is no GGUF file.
        BackendError: The hub does not give it.
    """
    from docmind.backends.gguf_header import header_of_beginning

    known: list[HubFile] = []
    beginning = b""
    for file in model.files:
        if not known or file.size_bytes is None:
            length = 4 if known else HEAD_BYTES
            start, found = _asked(_beginning(config, file.url, length), file.name)
            _refuse_other_size(file, start.total)
            beginning = beginning or found
            file = replace(file, size_bytes=start.total, sha256=file.sha256 or start.sha256)
        known.append(file)
    model = replace(model, files=tuple(known))
    return model, header_of_beginning(beginning, model.files[0].size_bytes or len(beginning), model.name)


def fit(config: Config, model: HubModel, room: Room, **settings: Any) -> Fit:
    """Whether a model would fit this machine, asked before it is fetched.

    Args:
        settings: As for `fits.fits`: `window`, `kv_type`, `flash_attention`.
    """
    from docmind.backends.fits import fits

    model, header = look(config, model)
    return fits(header, model.size_bytes or 0, room, **settings)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be fetched, and whether it would fit this machine; None: its size is not known."""

    model: HubModel
    fit: Fit | None


def room_here() -> Room:
    """The memory that a model from a hub would find on this machine."""
    from docmind.backends.fits import room

    runner: Any = backend(GGUF_BACKEND)
    return room(hardware.read(), has_gpu_support=runner.has_gpu_support())


def offers(config: Config, source: str, room: Room) -> tuple[Offer, ...]:
    """What an address or a repository has, by name.

    Whether models of a repository fit is told from the header of the first: they are one model in several sizes.

    Raises:
        ModelNotFound, ModelDamaged, BackendError: As from `find` and `look`.
    """
    from docmind.backends.fits import fits

    if "://" in source:
        models: tuple[HubModel, ...] = (_at(source),)
    else:
        models = models_of(config, source)
    if not models:
        return ()
    first, header = look(config, models[0])
    return tuple(
        Offer(model, fits(header, model.size_bytes, room) if model.size_bytes else None)
        for model in (first, *models[1:])
    )


def _hub() -> str:
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _file(repository: str, entry: object) -> HubFile | None:
    """A GGUF file of a listing; None for any other entry."""
    from docmind.backends.careful_http import clean, count

    if not isinstance(entry, dict) or entry.get("type") != "file":
        return None
    name = clean(entry.get("path"))
    if not name.lower().endswith(".gguf") or len(name) > 500 or ".." in name:
        return None
    lfs = entry.get("lfs")
    oid = clean(lfs.get("oid")) if isinstance(lfs, dict) else ""
    return HubFile(
        url=f"{_hub()}/{repository}/resolve/main/{quote(name)}",
        name=name,
        size_bytes=count(entry.get("size")),
        sha256=oid if _SHA256.fullmatch(oid) else None,
    )


# Fetching -------------------------------------------------------------------------------------------------------------


def download(
    config: Config, model: HubModel, *, progress: Callable[[Progress], None], stop: threading.Event
) -> Path | None:
    """Fetch a model into the person's own folder; its path, of the first part where it has several.

    What was fetched before goes on where it ended. Called twice for one model it does nothing the second time.

    Args:
        progress: Called with bytes of all parts together; "checking" while bytes from before are read again.
        stop: Ends it within a second; then nothing is returned, and what came is kept.

    Raises:
        BackendBusy: It is being fetched already.
        ModelDamaged, BackendError: What comes is no GGUF file, not what the hub said, or does not fit the disk.
        BackendUnavailable: The connection broke; what came is kept.
    """
    import filelock

    if model.size_bytes is None:
        model, _ = look(config, model)
    folder, paths = config.model_folders[0], _paths(config, model)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f".{paths[0].name}.lock")
    with _writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise BackendBusy(f"{model.name} is being downloaded already.", "Wait for it, or stop it.") from error
    try:
        _refuse_full_disk(folder, (model.size_bytes or 0) - kept_bytes(config, model))
        done = 0
        for file, path in zip(model.files, paths, strict=True):
            if not _Fetching(config, file, path, done, model.size_bytes, progress, stop).run():
                return None
            done += _size(path)
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # somebody else has it by now; it is empty
            Path(lock.lock_file).unlink(missing_ok=True)
    return paths[0]


def kept_bytes(config: Config, model: HubModel) -> int:
    """How much of a model is on the disk from before; not whether it is still the same."""
    return sum(_size(path) + _size(_part(path)) for path in _paths(config, model))


def _paths(config: Config, model: HubModel) -> list[Path]:
    """Where its files will lie."""
    from docmind.uploads import safe_name

    return [config.model_folders[0] / safe_name(PurePosixPath(file.name).name) for file in model.files]


class _Fetching:
    """One file on its way."""

    def __init__(
        self,
        config: Config,
        file: HubFile,
        path: Path,
        before: int,
        total: int | None,
        progress: Callable[[Progress], None],
        stop: threading.Event,
    ) -> None:
        self.config = config
        self.file, self.path, self.before, self.total = file, path, before, total
        self.part, self.mark = _part(path), path.with_name(path.name + ".part.from")
        self.progress, self.stop = progress, stop
        self.have = 0  # bytes in the part that are known to belong to the file
        self.written = 0  # of those received by this call: how far the disk has come
        self.digest = hashlib.sha256()
        self.is_wrong = False  # what came is not the file, and nothing of it may be kept

    def run(self) -> bool:
        """Fetch it, unless it is there; whether it is whole now."""
        if self.path.exists():
            return self._is_the_same()
        etag = self._resume()
        if etag is None:
            return False
        size = self.file.size_bytes
        if size is None or self.have < size:
            try:
                size = self._receive(etag)
            except BackendUnavailable as broken:
                raise BackendUnavailable(
                    str(broken),
                    f"{_megabytes(self.have)} are kept: download it again, and it goes on from there.",
                    reason=broken.reason,
                ) from broken
            if self.have < size:
                if self.stop.is_set():
                    return False
                raise BackendUnavailable(
                    f"The connection broke after {_megabytes(self.have)} of {_megabytes(size)}.",
                    "What came is kept: download it again, and it goes on from there.",
                    reason="no_end_marker",
                )
        self._finish()
        return True

    def _is_the_same(self) -> bool:
        """Whether what is there under this name is this file; hashing it may be stopped.

        Raises:
            BackendError: It is another one (`already_there`).
        """
        is_same = self.file.size_bytes == _size(self.path)
        if is_same and self.file.sha256 is not None:
            if not self._read(self.path):
                return False
            is_same = self.digest.hexdigest() == self.file.sha256
        if not is_same:
            raise BackendError(
                f"There is another file of the name {self.path.name} already.",
                f"Rename or delete it, then download again: {self.path}",
                reason="already_there",
            )
        return True

    def _resume(self) -> str | None:
        """Take up what was fetched before; the ETag it must still have, "" for none, None: stopped while reading it."""
        etag = ""
        said = ""
        with contextlib.suppress(OSError):
            said = self.mark.read_text(encoding="utf-8").strip()
        kind, _, value = said.partition(" ")
        size = self.file.size_bytes
        is_ours = (kind == "sha256" and value == self.file.sha256) if self.file.sha256 else kind == "etag"
        if is_ours and value and 4 <= _size(self.part) <= (size or 1 << 62):
            etag = value if kind == "etag" else ""
            if not self._read(self.part):
                return None
            self.have = _size(self.part)
        else:
            self._forget()
        return etag

    def _read(self, path: Path) -> bool:
        """Take the bytes of a file into the checksum; False: stopped."""
        size = _size(path)
        with _writing(path), path.open("rb") as file:
            while piece := file.read(1 << 20):
                if self.stop.is_set():
                    return False
                self.digest.update(piece)
                self.progress(Progress("checking", file.tell(), size))
        return True

    def _forget(self) -> None:
        """Remove what was fetched before."""
        self.have, self.digest = 0, hashlib.sha256()
        with _writing(self.part):
            self.part.unlink(missing_ok=True)
            self.mark.unlink(missing_ok=True)

    def _receive(self, etag: str) -> int:
        """Receive what is missing; the size of the whole file."""
        from docmind.background import follow

        size = 0

        async def opened() -> AsyncIterator[_Start | bytes]:
            return _pieces(self, self.have, etag)

        pieces = follow(opened, self.stop)
        try:
            with contextlib.closing(pieces), contextlib.ExitStack() as files:
                for piece in pieces:
                    if isinstance(piece, _Start):
                        size = self._begin(piece)
                        part = files.enter_context(self._opened())
                    else:
                        self._take(piece, size, part)
        finally:
            if self.is_wrong:
                self._forget()
        return size or (1 << 62)  # stopped before it began

    def _begin(self, start: _Start) -> int:
        """See whether the answer is the one that was asked for; the size of the whole file."""
        _refuse_other_size(self.file, start.total)
        if start.begin == 0:
            self._forget()  # it has changed, or the server gives it whole
        _refuse_full_disk(self.path.parent, start.total - self.have)
        self.file = replace(self.file, size_bytes=start.total, sha256=self.file.sha256 or start.sha256)
        self.total = self.total or start.total
        mark = f"sha256 {self.file.sha256}" if self.file.sha256 else f"etag {start.etag}" if start.etag else ""
        with _writing(self.mark):
            self.mark.write_text(mark, encoding="utf-8")
        return start.total

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with _writing(self.part), self.part.open("ab") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def _take(self, piece: bytes, size: int, part: Any) -> None:
        """Write a piece down; the first says whether it is a model at all, and nobody sends more than was announced."""
        if self.have == 0 and not piece.startswith(b"GGUF"):
            self.is_wrong = True
            raise BackendError(
                f"What came is no GGUF file: {_shown(piece)}",
                "Check the name; the hub may want you to log in or to accept its terms first.",
                reason="bad_response",
            )
        if self.have + len(piece) > size:
            self.is_wrong = True
            raise BackendError(
                f"More came than the {_megabytes(size)} that were announced.", "Choose another source.",
                reason="bad_response",
            )  # fmt: skip
        with _writing(self.part):
            part.write(piece)
        self.digest.update(piece)
        self.have += len(piece)
        self.written += len(piece)
        self.progress(Progress("downloading", self.before + self.have, self.total))

    def _finish(self) -> None:
        """Compare the checksum and give the file its name."""
        found = self.digest.hexdigest()
        if self.file.sha256 is not None and found != self.file.sha256:
            self._forget()
            raise BackendError(
                f"What came is not what the hub says it is: SHA-256 {found[:12]}…, not {self.file.sha256[:12]}…. "
                "It was removed.",
                "Download it again; if it happens again, choose another source.",
                reason="wrong_checksum",
            )
        with _writing(self.path):
            self.path.with_name(self.path.name + ".sha256").write_text(f"{found}  {self.path.name}\n", encoding="utf-8")
            self.part.replace(self.path)
            self.mark.unlink(missing_ok=True)


def remembered_sha256(path: Path) -> str | None:
    """The SHA-256 a model file had when it was fetched; None: it was not fetched by DocMind."""
    with contextlib.suppress(OSError, UnicodeError):
        found = path.with_name(path.name + ".sha256").read_text(encoding="utf-8")[:64]
        return found if _SHA256.fullmatch(found) else None
    return None


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _shown(piece: bytes) -> str:
    from docmind.backends.careful_http import plain

    return plain(piece.decode("utf-8", "replace"))[:80]  # cut last: of a key that is repeated no half may be left


def _refuse_other_size(file: HubFile, total: int) -> None:
    if file.size_bytes is not None and file.size_bytes != total:
        raise BackendError(
            f"{file.name} has {_megabytes(total)} there, and {_megabytes(file.size_bytes)} in the hub's list.",
            "It may have been replaced just now: look it up again.",
            reason="bad_response",
        )


def _refuse_full_disk(folder: Path, missing: int) -> None:
    with _writing(folder):
        free = shutil.disk_usage(folder).free
    if missing > 0 and missing + SPARE_BYTES > free:
        raise BackendError(
            f"{_megabytes(missing)} are missing, and the disk has {_megabytes(free)} free.",
            f"Free some space: {_megabytes(SPARE_BYTES)} must be left.",
            reason="disk_full",
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the disk refuses, as an error with a remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BackendError):  # a connection that broke is an OSError too, for Python
            raise
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise BackendError("The disk is full.", "Free some space, then go on.", reason="disk_full") from error
        raise BackendError(
            f"{path} cannot be written: {error.strerror}.", "Check the folder and its permissions.",
            reason="not_written",
        ) from error  # fmt: skip


# Asking ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Start:
    """What an answer says before its bytes."""

    begin: int
    total: int
    etag: str  # a strong one; "" for none
    sha256: str | None


def _asked(question: Any, what: str) -> Any:
    """The answer to a question, for synchronous code.

    Raises:
        ModelNotFound: It is not there.
        BackendError: Whatever else is wrong.
    """
    from docmind.backends.careful_http import wait_for

    try:
        return wait_for(question)
    except ModelNotFound as error:
        raise ModelNotFound(f"{what}: {error}", error.hint) from error


async def _listing(config: Config, url: str) -> list[Any]:
    """The array that an address of the hub gives."""
    from docmind.backends.careful_http import bad_response, read_whole

    async with _answer(config, url) as (answer, _):
        async with asyncio.timeout(ANSWER_SECONDS):
            whole = await read_whole(answer)
    try:
        listing = json.loads(whole)
    except (ValueError, RecursionError) as error:
        raise bad_response(f"It said: {_shown(whole)}") from error
    if not isinstance(listing, list):
        raise bad_response(f"It said: {_shown(whole)}")
    return listing


async def _beginning(config: Config, url: str, length: int) -> tuple[_Start, bytes]:
    """The first bytes of a file."""
    async with _answer(config, url, {"Range": f"bytes=0-{length - 1}"}) as (answer, sha256):
        start = _start(answer, 0, sha256)
        found = bytearray()
        async with asyncio.timeout(ANSWER_SECONDS):
            async for piece in answer.aiter_raw():
                found += piece
                if len(found) >= length:
                    break
    return start, bytes(found[:length])


async def _pieces(fetching: _Fetching, begin: int, etag: str) -> AsyncIterator[_Start | bytes]:
    """A file from a byte on: how it begins, then its bytes as they come."""
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    if begin and etag:
        headers["If-Range"] = etag
    received = 0
    async with _answer(fetching.config, fetching.file.url, headers) as (answer, sha256):
        yield _start(answer, begin, sha256, fetching.file.size_bytes)
        pieces = answer.aiter_raw(_PIECE_BYTES)
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                raise BackendUnavailable(f"Nothing came for {ANSWER_SECONDS:.0f} seconds.", "") from error
            if piece is None:
                return
            yield piece
            received += len(piece)
            while received - fetching.written > _AHEAD_BYTES:
                await asyncio.sleep(0.02)


def _start(answer: httpx.Response, begin: int, sha256: str | None, known: int | None = None) -> _Start:
    """What an answer to a request for a file says of it.

    Raises:
        BackendError: It is another piece than was asked for, packed, or of unknown length.
    """
    from docmind.backends.careful_http import bad_response, count

    if answer.headers.get("content-encoding", "identity") != "identity":
        raise bad_response("It packs what should come as it is.")
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise bad_response("It gives a web page instead of a file.")
    etag = answer.headers.get("etag", "")
    etag = "" if etag.startswith("W/") or not etag.isascii() or len(etag) > 200 else etag
    if answer.status_code == 206:
        said = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if said is None or int(said[1]) != begin or int(said[2]) >= int(said[3]):
            raise bad_response("It gives another part of the file than the one asked for.")
        return _Start(begin, int(said[3]), etag, sha256)
    length = answer.headers.get("content-length", "")
    total = count(int(length)) if length.isdecimal() and len(length) < 16 else known
    if not total:
        raise bad_response("It does not say how long the file is.")
    return _Start(0, total, etag, sha256)


@contextlib.asynccontextmanager
async def _answer(
    config: Config, url: str, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[httpx.Response, str | None]]:
    """The answer of an address, or of where it leads; and the SHA-256 that the hub named on the way.

    Raises:
        BackendError: It leads where it must not, or is refused.
    """
    import httpx

    from docmind.backends.careful_http import HEADERS, client_settings, converted, plain

    first: set[str] = set()
    token = sha256 = ""
    for _ in range(_MOST_STEPS):
        settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)  # refuses what is no address
        places = await _places(url)
        first = first or places
        if unsafe := _unsafe(url, places, first):
            raise _refused(url, unsafe)
        sent = HEADERS | (headers or {}) | ({"Authorization": f"Bearer {token}"} if token and _is_hub(url) else {})
        async with httpx.AsyncClient(base_url=_origin(url), **settings) as client:
            with converted(client):
                try:
                    request = client.build_request("GET", url, headers=sent)
                    async with asyncio.timeout(ANSWER_SECONDS):
                        answer = await client.send(request, stream=True)
                except TimeoutError as error:
                    raise BackendUnavailable(
                        f"{_origin(url)} does not answer.", "Check the connection, then try again."
                    ) from error
                async with contextlib.aclosing(answer):
                    # The name may lead elsewhere than when it was looked up.
                    reached = answer.extensions["network_stream"].get_extra_info("server_addr")
                    if reached and _kind(reached[0]) not in places:
                        raise _refused(url, "its name leads to changing addresses")
                    linked = answer.headers.get("x-linked-etag", "").strip('"')
                    if _SHA256.fullmatch(linked) and _is_hub(url):
                        sha256 = linked
                    location = answer.headers.get("location", "")
                    if 300 <= answer.status_code < 400 and location:
                        url = urljoin(url, location)
                        continue
                    if answer.status_code in (401, 403) and not token and _is_hub(url):
                        token = os.environ.get("HF_TOKEN", "").strip()
                        if token and token.isascii() and token.isprintable():
                            given_out(token)
                            continue
                    if answer.status_code >= 300:
                        raise _refusal(answer)
                    yield answer, sha256 or None
                    return
    raise _refused(plain(url), "it leads on and on")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _is_hub(url: str) -> bool:
    """Whether an address is the hub's own, where a token may go: by https, or on this machine."""
    return _origin(url) == _origin(_hub())


async def _places(url: str) -> set[str]:
    """Where the addresses of a host are."""
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BackendUnavailable(
            f"There is no way to {parts.hostname}.", "Check the connection and the name, then try again."
        ) from error
    return {_kind(str(address[0])) for *_, address in found}


def _kind(address: str) -> str:
    """Where an IP address is: "this device", "local network", "internet", or "nowhere" one should ask."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return "this device"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return "nowhere"
    return "internet" if ip.is_global else "local network"


def _unsafe(url: str, places: set[str], first: set[str]) -> str:
    """Why an address is not asked; "": it may be."""
    if urlsplit(url).scheme != "https" and places != {"this device"}:
        return "it is not https"
    if "nowhere" in places or not places <= first | {"internet"}:
        return "it leads into this machine or its network"
    return ""


def _refused(url: str, why: str) -> BackendError:
    from docmind.backends.careful_http import plain

    return BackendError(f"{plain(url)} was not asked: {why}.", "Choose another source.", reason="address_refused")


def _refusal(answer: httpx.Response) -> BackendError:
    """The error for a status that is none of success. A hub says 401 for what it does not have, too."""
    host, status = answer.request.url.host, answer.status_code
    if "gated" in answer.headers.get("x-error-code", "").lower():
        return BackendError(
            "Its maker wants you to accept terms first.",
            "Accept them on the model's page while logged in, then set HF_TOKEN to a token of yours and try again.",
            reason="key_rejected",
        )
    if status in (401, 403, 404, 410):
        return ModelNotFound(
            f"{host} has no such model (HTTP {status}).",
            "Check the name. If only some people may see it, set HF_TOKEN to a token of yours.",
        )
    if status == 429:
        return BackendError(f"{host} was asked too often (HTTP 429).", "Wait a while.", reason="rate_limited")
    return BackendError(f"{host} refuses (HTTP {status}).", "Try again later.", reason="bad_response")
