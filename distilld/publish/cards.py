"""Writes dataset cards: a README.md in each export folder, which is ours while it contains our marker line.

A card is no export: no receipt names it, nothing restores it, and a batch is committed even if its card is not written.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from distilld.core.export_cards import export_cards
from distilld.core.model import CARD, CARD_MARKER, EXPORT_PATHS
from distilld.core.remedies import remedy_of
from distilld.files.durable import replace_file
from distilld.files.regular import read_regular
from distilld.publish.lasting import Lasting

log = structlog.get_logger()


def write_cards(root: Path, lasting: Lasting) -> None:
    """Write the card of each folder that holds exports, if it is missing, or ours and out of date."""
    for folder, text in export_cards().items():
        card, content = f"{folder}/{CARD}", text.encode()
        try:
            if _holds_exports(root, folder) and _is_due(root / card, content):
                replace_file(root / card, content)
                log.debug("card_written", path=card)
            lasting.is_news(card, None)
        except OSError as error:
            problem = error.strerror or str(error)
            if lasting.is_news(card, problem):
                log.warning("card_not_written", path=card, problem=problem, hint=remedy_of(error))


def _holds_exports(root: Path, folder: str) -> bool:
    return any((root / path).is_file() for path in EXPORT_PATHS.values() if path.startswith(f"{folder}/"))


def _is_due(path: Path, text: bytes) -> bool:
    try:
        found = read_regular(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # not a readable file, so not ours
    return CARD_MARKER.encode() in found and found != text
