"""The records of a study on disk: append-only, one JSON object a line, safe against a kill at any instant.

Owns `results/<study>/records.jsonl` and its lock; knows nothing of how a record came about.

    with Store.open(Path("results"), "h200x2") as store:
        store.append(record)
    records = read_records(Path("results/h200x2"))
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from xdit_bench.errors import ResultsError
from xdit_bench.results.schema import Record

RECORDS = "records.jsonl"
SITTING_GAP_S = 600.0  # between the end of one point and the start of the next: more, and another sitting begins


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes its name, so that nothing reads it as a time."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_records(
    study_dir: Path, mend: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data
) -> list[Record]:
    """All records of a study, or of a records file, in the order they were written; `mend` sees each object first.

    A torn last line (a run was killed while writing) is left out with a warning on stderr; any other bad line
    raises ResultsError naming file and line.
    """
    path = study_dir / RECORDS if study_dir.is_dir() else study_dir
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"no records at {path} ({error.strerror}); name a folder that holds {RECORDS}") from error
    records: list[Record] = []
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise TypeError(f"it is a {type(found).__name__}, not an object")
            records.append(Record.from_dict(mend(found)))
        except (ValueError, TypeError) as error:
            if number == len(lines) and not isinstance(error, ResultsError):
                print(
                    f"warning: {path}: line {number} was torn by a killed run and is left out",
                    file=sys.stderr,
                )
                continue
            raise ResultsError(
                f"{path}, line {number} is no record ({error}); take that line out, the others stand"
            ) from error
    return records


def studies(results_dir: Path) -> Iterator[tuple[Path, list[Record]]]:
    """Folders of studies with their records; of one that can not be read, a warning says why. Raises ResultsError
    where there is a file in the folder's place, or nothing where a folder was named."""
    if not results_dir.is_dir() and (results_dir.exists() or results_dir != Path("results")):
        raise ResultsError(f"results_dir={results_dir} is no folder; name the one that holds the studies")
    for path in sorted(results_dir.glob(f"*/{RECORDS}")):
        try:
            records = read_records(path.parent)
        except ResultsError as error:
            print(f"warning: {error}; its study is left out", file=sys.stderr)
            continue
        yield path.parent, records


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each run_id, in the order the ids first came."""
    newest: dict[str, Record] = {}
    for record in records:
        newest[record.run_id] = record
    return list(newest.values())


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each point, source and machine, in the order the points first came.

    A point measured again by other code replaces its older record; within one file the later line is the newer. A
    topology is predicted by one model from one file: what other numbers or other code said of it before is left out.
    """
    kept = list(records)
    model = {record.point["topology"]: record.fingerprint for record in kept if record.source == "predicted"}
    found: dict[str, Record] = {}
    for record in kept:
        if record.source == "predicted" and record.fingerprint != model[record.point["topology"]]:
            continue
        found[json.dumps([record.point, record.source, record.fingerprint], sort_keys=True, default=str)] = record
    return list(found.values())


def sittings(records: Iterable[Record]) -> dict[str, int]:
    """Which sitting each record of one machine is of, by its time: points that were run one after another are of one,
    whatever groups a report puts them in."""
    found: dict[str, int] = {}
    ended, last = -math.inf, -1
    for record in sorted(records, key=_ended_s):
        whole = (record.telemetry.get("spent_s") or {}).get("whole")
        spent = whole if isinstance(whole, int | float) and math.isfinite(whole) else 0.0
        last += _ended_s(record) - spent - ended > SITTING_GAP_S
        found[record.time], ended = last, _ended_s(record)
    return found


def _ended_s(record: Record) -> float:
    return datetime.fromisoformat(record.time).timestamp()



class Store:
    """A study's records open for appending, locked against a second sweep. Use as a context manager."""

    def __init__(self, study_dir: Path, lock: IO[str], out: RawIOBase, done: list[Record]) -> None:
        self.study_dir = study_dir
        self._lock = lock
        self._out = out
        self.records = done

    @classmethod
    def open(cls, results_dir: Path, study: str, *, shared: bool = False) -> Store:
        """Creates or opens `results_dir/study`, repairs a torn last line, takes the lock. Raises ResultsError.

        `shared`: the jobs of one sweep over a cluster write side by side; a sweep of its own keeps them out.
        """
        study_dir = results_dir / study
        try:
            study_dir.mkdir(parents=True, exist_ok=True)
            lock = (study_dir / "records.lock").open("w")
        except OSError as error:
            raise ResultsError(
                f"results go to {study_dir}, which can not be written ({error.strerror}); "
                f"set results_dir to a folder that can"
            ) from error
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ResultsError(
                f"one sweep at a time writes a study, and another is writing {study_dir}; "
                f"wait for it, or give this one its own study=<name>"
            ) from error
        path = study_dir / RECORDS
        with ExitStack() as opened:
            opened.enter_context(lock)
            try:
                out = opened.enter_context(path.open("ab", buffering=0))  # a buffer would keep a failed write's bytes
                with _alone(out):
                    _repair(path)
                    done = read_records(study_dir)
            except OSError as error:
                raise ResultsError(f"{path} can not be written ({error.strerror})") from error
            opened.pop_all()
        return cls(study_dir, lock, out, done)

    def append(self, record: Record) -> None:
        """Writes one line and waits until the disk has it. Raises ResultsError when the disk is full."""
        line = json.dumps(_finite(record.to_dict()), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with _alone(self._out):
            end = self._out.seek(0, os.SEEK_END)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._out.write(rest) :]
                os.fsync(self._out.fileno())
            except OSError as error:
                # half a line would hide the next record: cut back to the last whole one
                os.ftruncate(self._out.fileno(), end)
                raise ResultsError(
                    f"{self.study_dir / RECORDS} can not take another record ({error.strerror}); earlier records are "
                    f"intact: make room and run the same command again, it goes on from here"
                ) from error
        self.records.append(record)

    def find(self, run_id: str) -> Record | None:
        """The newest record of this identity, or None."""
        return next((r for r in reversed(self.records) if r.run_id == run_id), None)

    def close(self) -> None:
        """Closes the file and gives the lock back."""
        self._out.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _alone(file: RawIOBase) -> Iterator[None]:
    """Keeps the other jobs of a shared study from writing meanwhile."""
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _repair(path: Path) -> None:
    """Cuts a last line without its newline: the process that wrote it was killed."""
    if not path.exists():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        keep = raw.rfind(b"\n") + 1
        print(
            f"warning: {path}: its last line was torn by a killed run; {len(raw) - keep} bytes cut",
            file=sys.stderr,
        )
        with path.open("r+b") as file:
            file.truncate(keep)
            os.fsync(file.fileno())
