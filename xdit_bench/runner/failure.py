"""An exception on a rank as plain data: its kind, its sentence, and what a person needs to act on it.

try: ...
except Exception as error:
    report = describe(error, stage="denoise", iteration=3)
    forget_frames(error)
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

from xdit_bench.errors import PointFailure, UserError, first_line
from xdit_bench.measure.memory import bytes_asked, out_of_memory

TRACE = 4000  # characters of a trace's end
SAVING = "parity"  # the stage that writes references and outputs


def describe(error: BaseException, stage: str, iteration: int) -> dict[str, Any]:
    """`kind` is oom, disk (it refuses what the point leaves behind), a status an engine chose, or exception."""
    report: dict[str, Any] = {
        "event": "error",
        "kind": "exception",
        "type": type(error).__name__,
        "message": brief(error),
        "stage": stage,
        "iteration": iteration,
        "trace": "".join(traceback.format_exception(error, limit=-6))[-TRACE:],
    }
    if out_of_memory(error):
        report |= {"kind": "oom", "bytes_asked": bytes_asked(error)}
    elif stage == SAVING and disk_refuses(error):
        report["kind"] = "disk"
    elif isinstance(error, PointFailure):
        report |= {"kind": error.status, **error.details}
    elif isinstance(error, UserError):
        report["kind"] = "infeasible"
    return report


def disk_refuses(error: BaseException) -> bool:
    """Whether a file could not be written for lack of room or right."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    # safetensors wraps the system's error and keeps its words alone
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def drop_locals(error: BaseException | None) -> None:
    """Lets go of what the frames behind an error hold; its trace can still be printed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def forget_frames(error: BaseException | None) -> None:
    """Drops the tracebacks of an error and of those behind it: their frames hold the point's tensors."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def brief(error: BaseException) -> str:
    """An error's first line, as far as a record needs it."""
    return first_line(error)[:500]
