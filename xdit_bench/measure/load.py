"""How many cores other processes kept busy: what waits for its host is slower beside them, and nobody would know why.

watch = OtherWork()
...
watch.cores()  # 12.3, of all that the system counts; None where it does not say
"""

from __future__ import annotations

import time

import psutil

IDLE = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in its host's already


class OtherWork:
    """Watches from its making on. Ours are this process and all below it, what they have waited for included."""

    def __init__(self) -> None:
        self._begun, self._busy, self._own = time.monotonic(), _busy_s(), _own_s()

    def cores(self) -> float | None:
        """Mean since the making; None where one of our processes has ended unseen, whose time would be theirs."""
        own, seconds = _own_s(), time.monotonic() - self._begun
        if set(self._own) - set(own) or seconds <= 0:
            return None
        ours = sum(own.values()) - sum(self._own.values())
        return max(0.0, (_busy_s() - self._busy - ours) / seconds)


def _busy_s() -> float:
    """Seconds that all cores together have worked since the system began."""
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in IDLE))


def _own_s() -> dict[int, float]:
    """Seconds that each of our processes and its ended children have worked."""
    here = psutil.Process()
    found = {}
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system + times.children_user + times.children_system
    return found
