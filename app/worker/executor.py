"""The runs that are under way on this replica, one task each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from app.engine.agent import AgentVersion, resolve
from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason
from app.engine.first_write import run_started
from app.engine.limits import SERVICE_LIMITS, RunLimits
from app.engine.messages import ThreadMessage
from app.engine.moves import Stimuli
from app.engine.ownership import Claim, Loaded
from app.engine.records import RunRecord
from app.engine.resume import state_of
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.store_errors import DamagedCheckpoint, StoreError, reason_of
from app.event_bus.announce import announce_stopped
from app.telemetry.logs import bind_run, get_logger
from app.worker.driver import DriverPorts, LostRun, RunDriver
from app.worker.start import Start

# How often, and how much later each time, a run is left to a replica that has the tools which this one lacks.
LACKING_ATTEMPTS = 12
LACKING_DELAY_S = 5.0

log = get_logger(__name__)


class _Task:
    """A run's task, and its driver as soon as there is one."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.driver: RunDriver | None = None
        self.task: asyncio.Task[None] | None = None
        self.releasing = False
        self.suspect = claim.suspect


class LocalExecutor:
    """Implements `app.engine.ports.Executor`.

    Args:
        owner: this replica's incarnation.
        max_runs: how many runs may be under way at once.
        driver: makes what drives an attempt, with the arguments of `RunDriver`.
        on_abandoned: called with a run, and the reason, when its task has ended without saying what becomes of it.
            A service finds such runs among its rows; whoever has nobody that looks must end them.
    """

    def __init__(
        self,
        ports: DriverPorts,
        owner: str,
        *,
        max_runs: int,
        defaults: RunLimits = SERVICE_LIMITS,
        driver: Callable[..., RunDriver] = RunDriver,
        on_abandoned: Callable[[str, BaseException], None] = lambda _run_id, _error: None,
    ) -> None:
        self._ports = ports
        self._owner = owner
        self._max_runs = max_runs
        self._defaults = defaults
        self._make_driver = driver
        self._on_abandoned = on_abandoned
        self._tasks: dict[str, _Task] = {}
        self._on_free: list[Callable[[], None]] = []
        self.accepting = True
        self._draining = False
        # While its loop cannot keep up, a replica takes no more runs.
        self.late = False
        # Runs whose task ended by a defect: unlike those that were let go of, they count as crashed.
        self.crashed: set[str] = set()

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def free_slots(self) -> int:
        return self._max_runs - len(self._tasks) if self.accepting and not self.late else 0

    @property
    def holds_suspect(self) -> bool:
        """Whether a run is under way whose next crash ends it, and which has not closed a step here."""
        return any(entry.suspect for entry in self._tasks.values())

    def has_room(self) -> bool:
        return self.free_slots > 0

    def under_way(self) -> dict[str, int]:
        """The runs of this replica, each with the epoch of its claim."""
        return {run_id: entry.claim.fence.epoch for run_id, entry in self._tasks.items()}

    def drivers(self) -> dict[str, RunDriver]:
        """What drives the runs of this replica, as far as they are loaded."""
        return {run_id: entry.driver for run_id, entry in self._tasks.items() if entry.driver is not None}

    def on_free(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a run has ended, or a suspect is none any more: another can be claimed then."""
        self._on_free.append(callback)

    def start(self, claim: Claim, created: RunRecord, agent: AgentVersion) -> None:
        """Execute a run that was claimed as it was created."""
        if claim.opened:
            messages = tuple(ThreadMessage(i, m, created.run_id) for i, m in enumerate(created.input, 1))
            start = Start(
                claim=claim,
                run=created,
                agent=resolve(agent, created.overrides, self._defaults),
                state=RunState(),
                messages=messages,
                message_seq=claim.message_seq,
                opened=True,
                joined=True,
                now=created.created_at,
                stimuli=Stimuli(created.wakes),
            )
            self._spawn(claim, start)
        else:
            self._spawn(claim, None)

    def take(self, claim: Claim) -> None:
        """Execute a run that was claimed from the queue."""
        self._spawn(claim, None)

    def wake(self, run_id: str, wakes: int | None = None) -> None:
        """Something was stored for a run that may be under way here: its driver looks at once.

        Args:
            wakes: how often the run was woken in all, if that is known: then only a driver that missed one looks.
        """
        entry = self._tasks.get(run_id)
        if entry is not None and entry.driver is not None:
            entry.driver.wake(wakes)

    def signal(self, run_id: str, epoch: int) -> None:
        """The store has moved the run on to `epoch`: an earlier attempt stops at once and writes nothing more."""
        entry = self._tasks.get(run_id)
        if entry is not None and entry.task is not None and entry.claim.fence.epoch < epoch:
            entry.task.cancel()

    def drop_all(self) -> None:
        """Stop every run without a further write: this replica may have lost them."""
        for run_id, epoch in self.under_way().items():
            self.signal(run_id, epoch + 1)

    async def drain(self, grace_s: float) -> None:
        """Take no more runs; release each at its next commit, or as far as it comes in `grace_s` seconds.

        A run that was claimed just before is released too.
        """
        self.accepting = False
        self._draining = True
        for entry in self._tasks.values():
            entry.releasing = True
            if entry.driver is not None:
                entry.driver.stop_at_next_commit()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        while (left_s := until - loop.time()) > 0:
            tasks = [entry.task for entry in self._tasks.values() if entry.task is not None]
            if not tasks:
                break
            await asyncio.wait(tasks, timeout=left_s)
        for entry in list(self._tasks.values()):
            if entry.task is not None:
                entry.task.cancel()
        left = [entry.task for entry in self._tasks.values() if entry.task is not None]
        if left:
            await asyncio.wait(left, timeout=2.0)

    def _spawn(self, claim: Claim, start: Start | None) -> None:
        entry = _Task(claim)
        entry.releasing = self._draining
        run_id = claim.fence.run_id
        self._tasks[run_id] = entry
        entry.task = asyncio.create_task(self._execute(entry, start), name=f"run-{run_id}")
        entry.task.add_done_callback(lambda task: self._ended(run_id, entry, task))

    def _ended(self, run_id: str, entry: _Task, task: asyncio.Task[None]) -> None:
        error = _defect(task)
        if error is not None:
            log.error("run_task_failed", run_id=run_id, error=repr(error))
            self.crashed.add(run_id)
        if self._tasks.get(run_id) is entry:
            del self._tasks[run_id]
        if error is not None:
            self._on_abandoned(run_id, error)
        self._freed()

    def _progressed(self, entry: _Task) -> None:
        if entry.suspect:
            entry.suspect = False
            self._freed()

    def _freed(self) -> None:
        for callback in self._on_free:
            callback()

    async def _execute(self, entry: _Task, start: Start | None) -> None:
        run_id = entry.claim.fence.run_id
        bind_run(run_id)
        try:
            if start is None:
                start = self._resumed(entry.claim, await self._ports.store.load(run_id))
            if await self._put_back(entry.claim, start):
                return
            driver = entry.driver = self._make_driver(
                self._ports,
                start,
                on_lost=lambda: self.signal(run_id, entry.claim.fence.epoch + 1),
                on_progress=lambda: self._progressed(entry),
            )
            if entry.releasing:
                driver.stop_at_next_commit()
            await self._drive(entry, driver)
        except LostRun:
            log.debug("run_lost", run_id=run_id, attempt=entry.claim.attempt)
        except DamagedCheckpoint as error:
            log.error("run_damaged", run_id=run_id, error=str(error))
            stopped = await self._ports.store.stop(run_id, RunStatus.FAILED, RunError("damaged_checkpoint", str(error)))
            announce_stopped(self._ports.bus, stopped)
        except StoreError as error:
            log.warning("run_dropped", run_id=run_id, error=reason_of(error))
            self._on_abandoned(run_id, error)

    async def _put_back(self, claim: Claim, start: Start) -> bool:
        """Leave a run to another replica if this one lacks a tool of it; one that nobody takes is run without."""
        if start.opened or claim.attempt > LACKING_ATTEMPTS:
            return False
        lacking = self._ports.tools.for_agent(start.agent.toolbox).lacking(start.agent.tools)
        if not lacking:
            return False
        log.warning("tools_missing", run_id=claim.fence.run_id, tools=lacking, again_in_s=LACKING_DELAY_S)
        await self._ports.store.release(claim.fence, start.elapsed_s, delay_s=LACKING_DELAY_S)
        return True

    async def _drive(self, entry: _Task, driver: RunDriver) -> None:
        run_id = entry.claim.fence.run_id
        try:
            status = await driver.drive()
            log.debug("run_left", run_id=run_id, status=status)
            if driver.failure is not None:
                log.warning("run_failed", run_id=run_id, code=driver.failure.code, error=driver.failure.message)
        except asyncio.CancelledError:
            if entry.releasing:
                with suppress(StoreError):
                    await driver.release()
            raise
        except (LostRun, StoreError):
            raise
        except Exception as error:
            log.exception("run_crashed", run_id=run_id)
            reason = RunError("internal", f"the service failed while it ran this run ({type(error).__name__})")
            await driver.give_up(reason)

    def _resumed(self, claim: Claim, loaded: Loaded) -> Start:
        """Where an attempt goes on that was claimed from the queue."""
        run = loaded.run
        agent = resolve(loaded.agent, run.overrides, self._defaults)
        started = loaded.checkpoint is not None
        if loaded.resume_reason is None or not started:
            first = run_started(agent)
        else:
            first = resumed_event(loaded, claim.attempt, loaded.resume_reason)
        return Start(
            claim=claim,
            run=run,
            agent=agent,
            state=state_of(loaded),
            messages=loaded.messages,
            used_ids=loaded.used_ids,
            message_seq=loaded.messages[-1].seq if loaded.messages else 0,
            opened=False,
            joined=started,
            elapsed_s=loaded.elapsed_s,
            wall_from_s=loaded.wall_from_s,
            first_events=(first,),
            now=loaded.now,
            stimuli=loaded.stimuli,
        )


def _defect(task: asyncio.Task[None]) -> BaseException | None:
    """Why a task ended that should not have; None if it went as it was meant to."""
    if not task.cancelled():
        return task.exception()
    # A cancellation that nobody asked for was raised by what the run called.
    return None if task.cancelling() else asyncio.CancelledError("raised by what the run called")


def resumed_event(loaded: Loaded, attempt: int, reason: ResumeReason) -> Event:
    """That an attempt after the first began; deltas after `from_seq` are void."""
    data = {"reason": reason, "attempt": attempt, "from_seq": loaded.checkpoint_seq}
    step = 1 if loaded.checkpoint is None else loaded.checkpoint.step
    return Event(EventType.RUN_RESUMED, step, data, RunStatus.RUNNING)
