"""Telling the bus what a transition in the store has left: to readers, to owners and to those who claim."""

from __future__ import annotations

from app.engine.ports import EventBus
from app.engine.records import Stimulated, Stopped
from app.engine.status import RunStatus


def announce_stopped(bus: EventBus, stopped: Stopped) -> None:
    """A run, with its child runs, that was ended, paused or resumed."""
    run = stopped.run
    if stopped.changed:
        bus.publish(run.run_id, stopped.events)
        bus.control(run.run_id, run.epoch)
    for member in stopped.family:
        announce_stopped(bus, member)
    if stopped.woken is not None:
        announce_stimulated(bus, stopped.woken)
    if stopped.promoted is not None or run.status is RunStatus.QUEUED:
        bus.queued()


def announce_stimulated(bus: EventBus, stimulated: Stimulated) -> None:
    """A run for which something was stored."""
    if not stimulated.changed:
        return
    bus.publish(stimulated.run_id, stimulated.events)
    if stimulated.status is RunStatus.QUEUED:
        bus.queued()
    elif stimulated.status is RunStatus.RUNNING:
        bus.wake(stimulated.run_id)
