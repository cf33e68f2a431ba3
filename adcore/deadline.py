"""A time at which work must have stopped: `adcore reproduce --minutes 9` sets one, trainings look at it.

    with deadline(540):
        train(...)      # saves its state and raises TimeUp before an epoch that would end too late
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_until = math.inf       # on the monotonic clock
AGAIN = 30.0            # seconds after which the alarm rings again, in case that the first was swallowed


class TimeUp(KeyboardInterrupt):
    """The time is up. Like an interruption by a person, it passes all code that catches errors."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """A block that is left by TimeUp when the time is up. Trainings leave it earlier, after they have saved their state.

    The alarm needs the main thread and a system with timers (not Windows); elsewhere only trainings stop in time.
    """
    global _until
    before, _until = _until, min(_until, time.monotonic() + seconds)
    rings = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    inside = True

    def ring(number: int, frame: FrameType | None) -> None:
        if inside:      # an alarm on the way out would leave the timer on
            raise TimeUp

    previous = signal.signal(signal.SIGALRM, ring) if rings else None
    try:
        if rings:
            _set_alarm()
        yield
    finally:
        inside = False
        _until = before
        if rings:
            _set_alarm()        # that of the deadline around this one, if there is one
            signal.signal(signal.SIGALRM, previous)


def _set_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, *((max(remaining(), 1e-3), AGAIN) if _until < math.inf else (0.0, 0.0)))


def remaining() -> float:
    """Seconds until the deadline; infinite without one."""
    return _until - time.monotonic()
