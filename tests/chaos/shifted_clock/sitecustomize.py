"""A wall clock that is wrong by CLOCK_OFF_S seconds, in every process that finds this folder first on its PYTHONPATH.

All that tells the time of day is wrong by the same: `time`, `datetime`, and the times inside of new ids. What counts
seconds is right, as on a machine whose clock was set wrong.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import uuid_utils.compat

_OFF_S = int(os.environ["CLOCK_OFF_S"])
_OFF_NS = _OFF_S * 1_000_000_000

_datetime, _uuid7 = datetime.datetime, uuid_utils.compat.uuid7
_time, _time_ns = time.time, time.time_ns
_clock_gettime, _clock_gettime_ns = time.clock_gettime, time.clock_gettime_ns


class _Kind(type):
    """Times that were made before, or by libraries in C, are times as well."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _datetime)


class _ShiftedDatetime(_datetime, metaclass=_Kind):
    __slots__ = ()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=_OFF_S)

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=_OFF_S)


def _of_day(read: Callable[[int], Any], off: int) -> Callable[[int], Any]:
    return lambda clock: read(clock) + (off if clock == time.CLOCK_REALTIME else 0)


def _shifted_uuid7(*, nanoseconds: int | None = None) -> UUID:
    return _uuid7(nanoseconds=time.time_ns() if nanoseconds is None else nanoseconds)


time.time = lambda: _time() + _OFF_S
time.time_ns = lambda: _time_ns() + _OFF_NS
time.clock_gettime = _of_day(_clock_gettime, _OFF_S)
time.clock_gettime_ns = _of_day(_clock_gettime_ns, _OFF_NS)
setattr(datetime, "datetime", _ShiftedDatetime)  # noqa: B010 - a type checker has no word for it
uuid_utils.compat.uuid7 = _shifted_uuid7
