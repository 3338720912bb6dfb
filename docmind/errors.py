"""One tree of errors. Each says what happened, and in ``hint`` what to do now.

    DocMindError
    ├── DocumentError(ValueError)            a file cannot be added; `reason` is from docs/reasons.md
    ├── DocumentNotFound(LookupError)        no document has that id, name or path
    ├── LibraryError(RuntimeError)           the data folder cannot be used
    │   ├── LibraryFull(OSError)             the disk is full
    │   ├── LibraryBusy(TimeoutError)        another process is ingesting
    │   ├── LibraryDamaged                   the database or a page fails its check
    │   └── LibraryTooNew                    made by a newer DocMind
    ├── EmbeddingChanged(RuntimeError)       the vectors were made by another embedding model
    ├── EmbeddingFailed(RuntimeError)        the server that makes the vectors does not; `reason` as of a BackendError
    ├── ProfileError(ValueError)             a profile is missing or has an unknown key
    ├── SettingsError(ValueError)            the settings cannot be read or written
    └── BackendError(RuntimeError)           a model cannot answer; `reason` is a closed code
        ├── BackendUnavailable(ConnectionError)
        ├── ConsentMissing(PermissionError)      text would leave this device, and nobody allowed it
        ├── ModelNotFound(LookupError)
        ├── ModelDamaged(ValueError)
        ├── ModelCrashed
        ├── BackendBusy
        └── ContextTooLong(ValueError)

A foreign exception is converted once, in the file that knows the remedy, with ``raise … from error``.
"""

from __future__ import annotations

from typing import ClassVar


class DocMindError(Exception):
    """Base of all errors DocMind raises on purpose.

    Attributes:
        hint: What the person can do now, one sentence.
        reason: A code from the closed list in docs/reasons.md.
    """

    default_reason: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str = "", *, reason: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.reason = reason or self.default_reason


class DocumentError(DocMindError, ValueError):
    """A file cannot be added."""

    default_reason = "damaged"


class DocumentNotFound(DocMindError, LookupError):
    """No document has that id, name or path."""

    default_reason = "document_missing"


class LibraryError(DocMindError, RuntimeError):
    """The data folder cannot be used."""

    default_reason = "library_unusable"


class LibraryFull(LibraryError, OSError):
    """The disk is full; what was added before is safe."""

    default_reason = "disk_full"


class LibraryBusy(LibraryError, TimeoutError):
    """Another process is ingesting."""

    default_reason = "library_busy"


class LibraryDamaged(LibraryError):
    """The database, or a page in it, fails its check."""

    default_reason = "library_damaged"


class LibraryTooNew(LibraryError):
    """The database was made by a newer DocMind."""

    default_reason = "library_too_new"


class EmbeddingChanged(DocMindError, RuntimeError):
    """The vectors in the library were made by another embedding model."""

    default_reason = "embedding_changed"


class EmbeddingFailed(DocMindError, RuntimeError):
    """The model of a backend that was chosen for the vectors makes none: nothing can be searched or added.

    No BackendError: another chat model would not help.
    """

    default_reason = "embedding_failed"


class ProfileError(DocMindError, ValueError):
    """A profile is missing or malformed."""

    default_reason = "profile_invalid"


class SettingsError(DocMindError, ValueError):
    """The settings cannot be read or written."""

    default_reason = "settings_invalid"


class BackendError(DocMindError, RuntimeError):
    """A model cannot answer."""

    default_reason = "backend_failed"


class BackendUnavailable(BackendError, ConnectionError):
    """The software that runs the model is not there."""

    default_reason = "unreachable"


class ConsentMissing(BackendError, PermissionError):
    """Text would leave this device for an address that the person has not allowed."""

    default_reason = "consent_missing"


class ModelNotFound(BackendError, LookupError):
    """The backend has no model of that name."""

    default_reason = "model_missing"


class ModelDamaged(BackendError, ValueError):
    """The model file cannot be loaded."""

    default_reason = "model_damaged"


class ModelCrashed(BackendError):
    """The process that ran the model died."""

    default_reason = "crashed"


class BackendBusy(BackendError):
    """One question is being answered and one is waiting already."""

    default_reason = "busy"


class ContextTooLong(BackendError, ValueError):
    """The prompt does not fit the model's window."""

    default_reason = "context_too_long"
