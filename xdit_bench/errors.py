"""Every failure class of the package, and the exit code each one ends in.

    XditBenchError
    ├── UserError (ValueError)       what a person typed or gave; exit code 2, nothing has run
    │   ├── ConfigError              a knob's value breaks a rule
    │   ├── TopologyError            a topology file or name is unusable, or is not this machine
    │   ├── WeightsError             a weights folder or hub id can not be loaded
    │   ├── MissingExtraError        an optional package is not installed
    │   └── ResultsError             a results folder or a records file can not be read or written
    └── PointFailure                 one point failed; becomes a record, the plan goes on
        ├── Infeasible               a rule forbids the point (24 heads over 5, more GPUs than there are)
        ├── OutOfMemory              a device had not enough memory
        └── RankCrashed              a rank raised or died

The messages state the rule, the value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class XditBenchError(Exception):
    """Root of everything this package raises on purpose."""


class UserError(XditBenchError, ValueError):
    """Something a person typed or gave can not be used; nothing has run yet (exit code 2)."""


class ConfigError(UserError):
    """A knob's value breaks a rule."""


class TopologyError(UserError):
    """A topology name or file is unusable, or does not describe this machine."""


class WeightsError(UserError):
    """A weights folder or hub id can not be loaded."""


class MissingExtraError(UserError):
    """An optional package is not installed; the message names the extra that holds it."""


class ResultsError(UserError):
    """A results folder or a records file can not be read or written."""


class PointFailure(XditBenchError):
    """A point failed; `status` is its outcome and `str(error)` the reason a person can act on.

    `details` are facts for the record beyond the sentence (stage, rank, bytes asked and free).
    """

    status: str = "crashed"

    def __init__(self, reason: str, **details: object) -> None:
        super().__init__(reason)
        self.details = details


class Infeasible(PointFailure):
    """A rule forbids the point; it was not run."""

    status = "infeasible"


class OutOfMemory(PointFailure):
    """A device had not enough memory."""

    status = "oom"


class RankCrashed(PointFailure):
    """A rank raised an exception or its process died."""

    status = "crashed"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean a100_nvlink?` for a message that ends in what was given; empty where nothing is near."""
    names = list(known)
    begun = [name for name in names if given and name.startswith(given)]
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6) or begun
    return f"; did you mean {close[0]}?" if close else ""


def either(options: Sequence[str]) -> str:
    """`1, 2 or 4`; a lone option is itself."""
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))


def first_line(error: BaseException) -> str:
    """What an error says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
