"""The texts of the sample lake's runs, drawn from texts.toml: readable, and the same for the same seed.

A rejected answer is vague, a partial one is incomplete, one for review hedges.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any, Final

from distilld.core.model import Category

_TEXTS: Final[Mapping[str, Any]] = tomllib.loads((resources.files("distilld.demo") / "texts.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Code:
    """A source file that runs are about."""

    path: str
    function: str
    thing: str


@dataclass(frozen=True, slots=True)
class _Finding:
    """A fault of a file; in the claim, ``{fn}`` and ``{thing}`` stand for the file's function and subject."""

    severity: str
    claim: str
    fix: str
    old: str
    new: str


def _tuple(name: str) -> tuple[str, ...]:
    return tuple(_TEXTS[name])


FILES: Final = tuple(Code(**each) for each in _TEXTS["files"])
(SHOWCASE,) = (Code(**each) for each in _TEXTS["showcase"])
INVENTED_FILES: Final = tuple(Code(**each) for each in _TEXTS["invented_files"])
CODE_AT: Final = {code.path: code for code in (SHOWCASE, *FILES, *INVENTED_FILES)}

PHASES: Final = tuple(str(number) for number in range(1, 41))
PERMITS: Final = tuple(str(100900001 + number) for number in range(40))
SCENARIOS: Final = tuple(f"{site}/{shift}" for site in _TEXTS["sites"] for shift in _TEXTS["shifts"])
MODELS: Final = _tuple("models")
CORPORA: Final = _tuple("corpora")
REASONS: Final = {Category(name): tuple(map(tuple, lists)) for name, lists in _TEXTS["reasons"].items()}

_CONTRACTORS: Final = tuple(name or None for name in _TEXTS["contractors"])
_FINDINGS: Final = tuple(_Finding(**each) for each in _TEXTS["findings"])
_VAGUE, _DOUBTS, _WORKS = _tuple("vague"), _tuple("doubts"), _tuple("works")
_GOOD_MARKERS, _BAD_MARKERS = _tuple("good_markers"), _tuple("bad_markers")


def _draw_findings(rng: Random, code: Code, count: int) -> list[_Finding]:
    """Return findings about one file, the most severe first."""
    drawn = rng.sample(_FINDINGS, count)
    drawn.sort(key=lambda finding: ("high", "medium", "low").index(finding.severity))
    return [
        _Finding(one.severity, one.claim.format(fn=code.function, thing=code.thing), one.fix, one.old, one.new)
        for one in drawn
    ]


def scrum_review(rng: Random, path: str, category: Category) -> str:
    head = f"# Review: `{path}` vs. Lakehouse PRD"
    if category is Category.REJECTED:
        return f"{head}\n\n{rng.choice(_VAGUE)}\n\nNo patches."
    parts = [head]
    for number, finding in enumerate(_draw_findings(rng, CODE_AT[path], rng.randint(2, 3)), start=1):
        confidence = rng.randrange(70, 99)
        parts.append(f"{number}. **{finding.severity}**, confidence {confidence} %, line {rng.randrange(20, 400)}\n")
        parts[-1] += f"   {finding.claim}\n   Patch: {finding.fix}"
    if category is Category.PARTIALLY_ACCEPTED:
        parts.append("The error paths were not looked at.")
    if category is Category.NEEDS_HUMAN_REVIEW:
        parts.append(rng.choice(_DOUBTS))
    return "\n\n".join(parts)


def mode_run(rng: Random, path: str, category: Category) -> str:
    code = CODE_AT[path]
    if category is Category.REJECTED:
        return f"mode: isolation\nfile: {path}\nfindings: none\n\n{rng.choice(_VAGUE)}"
    first, second = _draw_findings(rng, code, 2)
    grounded = {Category.ACCEPTED: 91, Category.PARTIALLY_ACCEPTED: 64}.get(category, 48)
    text = f"mode: isolation\nfile: {path}\nsymbols: {code.function}, Error\ngrounded: {grounded} %\n\n"
    text += f"- [{first.severity}] {first.claim}\n- [{second.severity}] {second.claim}"
    return text if category is Category.ACCEPTED else f"{text}\n\n{rng.choice(_DOUBTS)}"


def patch(rng: Random, path: str, category: Category) -> str:
    code = CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    line = rng.randrange(20, 400)
    if category is Category.REJECTED:
        return f"--- a/{path}\n+++ b/{path}\n@@ -{line},1 +{line},1 @@\n-    // TODO\n+    // done"
    diff = f"--- a/{path}\n+++ b/{path}\n@@ -{line},2 +{line},2 @@ pub fn {code.function}()\n"
    diff += f"     // {finding.fix}\n-{finding.old}\n+{finding.new}"
    return diff if category is Category.ACCEPTED else f"{diff}\n\nNot compiled. {rng.choice(_DOUBTS)}"


def audit(rng: Random, phase: str, category: Category) -> str:
    head = f"## Audit of phase {phase}"
    if category is Category.REJECTED:
        return f"{head}\n\nAll goals of the phase are met. {rng.choice(_VAGUE)}"
    lines = [
        f"- [{finding.severity}] {code.path}: {finding.claim}"
        for code in rng.sample(FILES, rng.randint(2, 4))
        for finding in _draw_findings(rng, code, 1)
    ]
    closing = {
        Category.ACCEPTED: f"{len(lines)} findings, each traced to a line. The phase closes when the high ones do.",
        Category.PARTIALLY_ACCEPTED: "The second half of the phase was not reached within the budget.",
    }.get(category) or rng.choice(_DOUBTS)
    return "\n".join([f"{head}\n", *lines, f"\n{closing}"])


def observer_review(rng: Random, path: str, category: Category) -> str:
    if category is Category.REJECTED:
        return "Verdict: accept\n\nLooks good to me."
    code = CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    verdict = rng.choice(("accept", "cycle", "reject"))
    opinion = {
        "accept": f"The attempt on `{path}` does what was asked: {finding.fix} The tests of the crate still pass.",
        "cycle": f"The attempt on `{path}` goes in the right direction and misses one thing. {finding.claim}",
        "reject": f"The attempt on `{path}` changes a function that nobody calls. {finding.claim}",
    }[verdict]
    text = f"Verdict: {verdict} (confidence {rng.randrange(70, 99)} %)\n\n{opinion}"
    return text if category is Category.ACCEPTED else f"{text}\n\n{rng.choice(_DOUBTS)}"


def contractor_of(permit: str) -> str | None:
    return _CONTRACTORS[int(permit) % len(_CONTRACTORS)]


def contract_analysis(rng: Random, permit: str, category: Category) -> str:
    head = f"Permit {permit}: {_WORKS[int(permit) % len(_WORKS)]}.\nContractor: {contractor_of(permit) or 'not named'}."
    if category is Category.REJECTED:
        return f"{head}\n\nRecommendation: hire. No risks."
    markers = f"- good: {rng.choice(_GOOD_MARKERS)}\n- bad: {rng.choice(_BAD_MARKERS)}"
    advice = rng.choice(("go ahead, with the certificate on file before day one", "ask for a second offer", "wait"))
    text = f"{head}\n\nRisk markers:\n{markers}\n\nRecommendation: {advice}."
    return text if category is Category.ACCEPTED else f"{text}\nThe register was not reachable, so this is from memory."


def outcome(rng: Random, scenario: str, category: Category) -> str:
    site, _, shift = scenario.partition("/")
    if category is Category.REJECTED:
        return f"Scenario {scenario}: everything went fine."
    wanted = rng.randrange(6, 24)
    lines = [f"Scenario {scenario}: {wanted} workers asked for by {site}."]
    missing = wanted
    while missing and len(lines) < 5:
        found = rng.randint(1, missing)
        missing -= found
        lines.append(f"{len(lines)}. {found} confirmed, {missing} open [playbook:{shift}/{rng.randrange(10, 99)}]")
    lines.append(f"Result: {'filled' if not missing else f'{missing} places stay open'}.")
    if category is not Category.ACCEPTED:
        lines.append(rng.choice(_DOUBTS))
    return "\n".join(lines)


def fact(rng: Random, path: str, category: Category) -> str:
    code = CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    if category is Category.REJECTED:
        return f"Fact: {code.thing} exists."
    text = f"Fact: {finding.claim}\nSource: {path}, line {rng.randrange(20, 400)}\nSeen in {rng.randint(2, 9)} runs."
    return text if category is Category.ACCEPTED else f"{text}\nContradicted once."
