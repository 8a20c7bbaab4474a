"""What the doctor says: one finding for each thing that was looked at. Knows no thing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import orjson

from proxy.control.printable import printable

Verdict: TypeAlias = Literal["ok", "warning", "failure"]

VERDICTS: tuple[Verdict, ...] = ("ok", "warning", "failure")

TEXT = 500
"""Characters of a text, parts of which a backend or a file may have written."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, and how it is."""

    verdict: Verdict
    """``failure``: it keeps the proxy from serving as configured; ``warning``: it will, or it costs speed or safety."""
    area: str
    """``kernel``, ``limits``, ``time``, ``port``, ``certificate``, ``keys``, ``backend``, ``state`` or ``configuration``."""
    what: str
    found: str
    expected: str = ""
    """Empty where what was found is as it should be."""
    mend: str = ""
    """The command that mends it, or where that is not one command, what to do."""


def as_text(findings: Sequence[Finding]) -> Iterator[str]:
    """A table, worst last, so that it stands above the prompt; what is to be done below each line."""
    ordered = sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict))
    area = max((len(finding.area) for finding in ordered), default=0)
    what = min(50, max((len(finding.what) for finding in ordered), default=0))
    indent = " " * (9 + area + 2)
    for finding in ordered:
        shown, found = printable(finding.what, TEXT), printable(finding.found, TEXT)
        yield f"{finding.verdict:<9}{finding.area:<{area}}  {shown:<{what}}  {found}".rstrip()
        if finding.expected:
            yield f"{indent}expected {printable(finding.expected, TEXT)}"
        if finding.mend:
            yield f"{indent}mend     {printable(finding.mend, TEXT)}"
    yield ", ".join(f"{count} {name}{'' if count == 1 or name == 'ok' else 's'}" for name, count in counts(ordered).items())


def as_json(findings: Sequence[Finding]) -> str:
    """One document: the findings in the order in which they were made, and how many there are of each verdict."""
    document = {"findings": [asdict(finding) for finding in findings], "summary": counts(findings)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def counts(findings: Sequence[Finding]) -> dict[Verdict, int]:
    """How many there are of each verdict."""
    found = Counter(finding.verdict for finding in findings)
    return {verdict: found[verdict] for verdict in VERDICTS}
