"""Settings and folders. Knows nothing else.

A `Config` is a frozen value passed as an argument. Making one reads the environment and touches no file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Config:
    """Where the data is, and the few numbers that shape ingestion, search and answers.

    The numbers are the measured defaults of docs/decisions.md; changing `passage_tokens` affects only
    documents added afterwards.
    """

    home: Path  # the data folder: library, log, the person's own models and profiles
    passage_tokens: int = 254  # tokens of a passage, title included; MiniLM reads 256 with its two markers
    dense_candidates: int = 100  # passages taken from the vectors
    bm25_candidates: int = 100  # passages taken from the full text
    rerank_candidates: int = 30  # passages scored by MaxSim
    first_token_target_seconds: float = 3.0  # how long a person may wait for the first word of an answer
    parse_memory_bytes: int = 1 << 30  # of one parsing process
    parse_cpu_seconds: float = 30.0  # CPU time for a document, before what its pages add
    parse_cpu_seconds_per_page: float = 0.5  # added to the above for each page
    parse_stall_seconds: float = 120.0  # wall time without a page and without CPU use (a dead network drive)
    parse_files_per_worker: int = 50  # a parsing process is replaced after so many files
    named_model_folders: tuple[Path, ...] = ()  # that the person named, searched for GGUF files after `models`
    has_model_caches: bool = False  # whether GGUF files that other programs fetched are listed too

    @property
    def database(self) -> Path:
        """The SQLite file that holds everything that cannot be derived."""
        return self.home / "library.sqlite3"

    @property
    def log(self) -> Path:
        """The log file; it holds no text of documents, questions or answers."""
        return self.home / "docmind.log"

    @property
    def settings(self) -> Path:
        """What the person decided for the whole program."""
        return self.home / "settings.toml"

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The person's own folder for models and profiles, and the one that comes with the program."""
        return (self.home / "models", Path(__file__).parent.parent / "models")


def default_home() -> Path:
    """`DOCMIND_HOME`, or the platform's folder for application data."""
    named = os.environ.get("DOCMIND_HOME")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("docmind", appauthor=False))


def load_config(home: str | Path | None = None) -> Config:
    """The configuration for a data folder; `home` wins over `DOCMIND_HOME`.

    `DOCMIND_MODELS` names more folders with GGUF files, separated as in PATH; `DOCMIND_MODEL_CACHES=0` leaves out those
    that other programs fetched.
    """
    named = os.environ.get("DOCMIND_MODELS", "").split(os.pathsep)
    return Config(
        home=(Path(home).expanduser() if home else default_home()).absolute(),
        named_model_folders=tuple(Path(folder).expanduser().absolute() for folder in named if folder.strip()),
        has_model_caches=os.environ.get("DOCMIND_MODEL_CACHES", "1") != "0",
    )
