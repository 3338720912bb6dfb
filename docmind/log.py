"""The log file for bug reports: what happened and how long it took, no word of documents, questions or answers."""

from __future__ import annotations

import io
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from docmind.store import make_private_folder

if TYPE_CHECKING:
    from docmind.config import Config

MAX_BYTES = 1 << 20


class _PrivateFileHandler(RotatingFileHandler):
    """Makes each new file readable by its owner only."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        return io.TextIOWrapper(os.fdopen(descriptor, "ab"), encoding=self.encoding, line_buffering=True)


def start_logging(config: Config) -> None:
    """Write this package's log to the data folder (0600, at most two files of 1 MB). Again changes nothing."""
    logger = logging.getLogger("docmind")
    for old in [handler for handler in logger.handlers if isinstance(handler, _PrivateFileHandler)]:
        if Path(old.baseFilename) == config.log:
            return
        logger.removeHandler(old)  # another data folder's
        old.close()
    make_private_folder(config.home)
    # delay: a read-only or full disk is reported by what needs it, not by its log
    handler = _PrivateFileHandler(config.log, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library's warning belongs into the file, not between the words of an answer
    logging.raiseExceptions = False  # nor does a full disk under the log end an answer
