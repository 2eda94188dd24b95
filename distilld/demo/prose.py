"""The texts of the sample lake's runs, filled in from texts.toml: readable, and the same for the same seed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from random import Random
from typing import Any, Final

from distilld.core.model import Category

TEXTS: Final[Mapping[str, Any]] = tomllib.loads((resources.files("distilld.demo") / "texts.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Code:
    """A source file that runs are about."""

    path: str
    function: str
    thing: str


FILES: Final = tuple(Code(**each) for each in TEXTS["files"])
(SHOWCASE,) = (Code(**each) for each in TEXTS["showcase"])
INVENTED_FILES: Final = tuple(Code(**each) for each in TEXTS["invented_files"])
_CODE_AT: Final = {code.path: code for code in (SHOWCASE, *FILES, *INVENTED_FILES)}

SUBJECTS: Final = {
    "files": tuple(code.path for code in FILES),
    "phases": tuple(str(number) for number in range(1, 41)),
    "permits": tuple(str(100900001 + number) for number in range(40)),
    "scenarios": tuple(f"{site}/{shift}" for site in TEXTS["sites"] for shift in TEXTS["shifts"]),
}
"""What the tasks of a source may be about."""
REASONS: Final = {Category(name): tuple(map(tuple, lists)) for name, lists in TEXTS["reasons"].items()}


def text_of(rng: Random, kind: str, subject: str, category: Category) -> str:
    """Return the text of a run: the rejected form of its kind, or the good one, with a doubt unless it was accepted."""
    code = _CODE_AT.get(subject) or rng.choice(FILES)
    one, other = (
        {**finding, "claim": finding["claim"].format(**asdict(code))} for finding in rng.sample(TEXTS["findings"], 2)
    )
    drawn = {name: rng.choice(TEXTS[name]) for name in ("vague", "doubts", "good_markers", "bad_markers")}
    form = TEXTS["texts"][kind]["rejected" if category is Category.REJECTED else "good"]
    text: str = form.format(
        **drawn,
        code=code,
        contractor=contractor_of(subject) or "not named",
        count=rng.randint(2, 9),
        line=rng.randrange(20, 400),
        one=one,
        other=other,
        percent=rng.randrange(70, 99),
        subject=subject,
        works=Random(subject).choice(TEXTS["works"]),
    )
    is_sure = category in (Category.ACCEPTED, Category.REJECTED)
    return text.strip() if is_sure else f"{text.strip()}\n\n{drawn['doubts']}"


def contractor_of(permit: str) -> str | None:
    """Return the contractor of a permit, if it names one; None for any other subject."""
    names = TEXTS["contractors"]
    return names[int(permit) % len(names)] or None if permit in SUBJECTS["permits"] else None
