"""Any sequence of what callers, owners and crashes do to runs, on the real queries: nothing is lost, and all can end.

Hypothesis makes the sequences and shrinks one that breaks a promise. Runs are driven by hand, as an owner drives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from app.db import heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.run_store import PostgresRunStore
from app.engine.apply import closing_event
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import Event, EventType
from app.engine.messages import Message, Role, ToolCall
from app.engine.records import Committed, NewRun, OnBusyThread, RunRecord, Woken
from app.engine.state import Hold, HoldKind, OpenCall, Phase, RunState
from app.engine.status import RunStatus as S
from app.engine.store_errors import InteractionDecided, RunConflict, ThreadBusy
from app.engine.transition import ToolRecord
from app.engine.usage import Usage
from app.services.threads import ThreadService
from tests.conftest import fresh_database
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    STOPPED,
    Owner,
    a_run,
    answered,
    begins,
    owner_of,
    postgres_subject,
    user,
)
from tests.contract.waiting import APPROVED, DENIED, a_question, hold
from tests.invariants import check_invariants

THREADS = ("one", "two", "three")
REPLICAS = (OWNER, OTHER_OWNER)
FINAL = {S.COMPLETED, S.DEGRADED, S.CANCELLED}
# What a caller gets by the status that the run has: the contract's table. None is a conflict.
ALLOWED: dict[str, dict[S, tuple[S, ...] | None]] = {
    "pause": {
        S.QUEUED: (S.PAUSED,),
        S.RUNNING: (S.RUNNING,),
        S.PAUSED: (S.PAUSED,),
        S.WAITING: (S.PAUSED,),
        **dict.fromkeys((S.COMPLETED, S.DEGRADED, S.FAILED, S.INTERRUPTED, S.CANCELLED)),
    },
    "resume": {
        S.QUEUED: (S.QUEUED,),
        S.RUNNING: (S.RUNNING,),
        S.PAUSED: (S.QUEUED,),
        S.WAITING: (S.WAITING,),
        S.COMPLETED: (S.COMPLETED,),
        S.DEGRADED: (S.DEGRADED,),
        S.FAILED: (S.QUEUED,),
        S.INTERRUPTED: (S.QUEUED,),
        S.CANCELLED: None,
    },
    "cancel": {status: (status if status.terminal else S.CANCELLED,) for status in S},
    "interrupt": {status: (status if status.terminal else S.INTERRUPTED,) for status in S},
}

_T = TypeVar("_T")


class Runs(RuleBasedStateMachine):
    """
    Args:
        wait: runs a coroutine to its end.
    """

    def __init__(self, database: Database, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        super().__init__()
        self._wait = wait
        self._database = database
        self._store = PostgresRunStore(database)
        self._threads = ThreadService(database)
        self._news: dict[str, NewRun] = {}
        self._owners: list[tuple[str, Owner]] = []
        self._late: list[Owner] = []  # owners that have lost their run and do not know it
        self.wait(self._beat(REPLICAS))

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._wait(work)

    def teardown(self) -> None:
        self.wait(self._end())

    # --- callers --------------------------------------------------------------------------------------------------

    @rule(thread=st.sampled_from(THREADS), busy=st.sampled_from(OnBusyThread), claims=st.booleans())
    def create(self, thread: str, busy: OnBusyThread, claims: bool) -> None:
        self.wait(self._create(a_run(thread, on_busy_thread=busy), OWNER if claims else None))

    @precondition(lambda self: self._news)
    @rule(data=st.data(), asked=st.sampled_from(sorted(ALLOWED)))
    def steer(self, data: st.DataObject, asked: str) -> None:
        self.wait(self._steer(self._some_run(data), asked))

    @precondition(lambda self: self._news)
    @rule(data=st.data(), first=st.sampled_from(sorted(ALLOWED)), second=st.sampled_from(sorted(ALLOWED)))
    def steer_twice_at_once(self, data: st.DataObject, first: str, second: str) -> None:
        self.wait(self._at_once(self._some_run(data), first, second))

    @precondition(lambda self: self._news)
    @rule(data=st.data(), approves=st.booleans())
    def decide(self, data: st.DataObject, approves: bool) -> None:
        self.wait(self._decide(self._some_run(data), approves))

    @rule(thread=st.sampled_from(THREADS))
    def append(self, thread: str) -> None:
        self.wait(self._threads.append_message(thread, user("by hand")))

    # --- owners ---------------------------------------------------------------------------------------------------

    @rule(replica=st.sampled_from(REPLICAS), limit=st.integers(1, 3))
    def claim(self, replica: str, limit: int) -> None:
        self.wait(self._claim(replica, limit))

    @precondition(lambda self: self._owners)
    @rule(data=st.data(), what=st.sampled_from(("go on", "say", "ask a person", "finish", "fail", "release")))
    def own(self, data: st.DataObject, what: str) -> None:
        place = data.draw(st.integers(0, len(self._owners) - 1), label="owner")
        self.wait(self._own(*self._owners[place], what))

    @precondition(lambda self: self._late)
    @rule(data=st.data())
    def write_late(self, data: st.DataObject) -> None:
        """An owner that has lost its run lands no write, whatever has become of the run."""
        self.wait(self._write_late(self._late[data.draw(st.integers(0, len(self._late) - 1), label="late owner")]))

    @rule(replica=st.sampled_from(REPLICAS))
    def crash(self, replica: str) -> None:
        """A replica dies; the other one, or itself when it is back, recovers its runs."""
        self.wait(self._crash(replica))

    @rule(replica=st.sampled_from(REPLICAS))
    def come_back(self, replica: str) -> None:
        """A replica that has let go of all its runs gives them back."""
        self.wait(self._come_back(replica))

    # --- how ------------------------------------------------------------------------------------------------------

    def _some_run(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self._news)), label="run")

    async def _create(self, new: NewRun, owner: str | None) -> None:
        try:
            created = await self._store.create(new, owner=owner)
        except ThreadBusy:
            assert new.on_busy_thread is OnBusyThread.REJECT
            return
        self._news[new.run_id] = new
        if created.claim is not None:
            assert owner is not None
            mine = owner_of(self._store, new, created.claim)
            await mine.start()
            self._owners.append((owner, mine))

    async def _steer(self, run_id: str, asked: str) -> None:
        before = await self._store.get(run_id)
        allowed = ALLOWED[asked][before.status]
        try:
            after = await self._asked(run_id, asked)
        except RunConflict:
            # A run that others have written behind cannot be resumed either.
            assert allowed is None or (asked == "resume" and before.status in (S.FAILED, S.INTERRUPTED))
            return
        assert allowed is not None
        assert after.status in allowed
        if before.status.terminal and after.status is before.status:
            assert after.last_event_seq == before.last_event_seq

    async def _asked(self, run_id: str, asked: str) -> RunRecord:
        match asked:
            case "pause":
                stopped = await self._store.pause(run_id)
            case "resume":
                stopped = await self._store.resume(run_id, None)
            case "cancel":
                stopped = await self._store.stop(run_id, S.CANCELLED, RunError("cancelled", "by the test"))
            case _:
                stopped = await self._store.stop(run_id, S.INTERRUPTED, STOPPED)
        return stopped.run

    async def _at_once(self, run_id: str, *asked: str) -> None:
        answers = await asyncio.gather(*(self._asked(run_id, each) for each in asked), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, RunRecord | RunConflict), answer
        ends = [each.status for each in answers if isinstance(each, RunRecord) and each.status in FINAL]
        assert len(set(ends)) <= 1, "both were told an end, and not the same one"

    async def _decide(self, run_id: str, approves: bool) -> None:
        for question in await self._store.interactions(run_id):
            try:
                await self._store.answer(run_id, question.interaction_id, APPROVED if approves else DENIED)
            except InteractionDecided:
                assert question.status != "pending"

    async def _claim(self, replica: str, limit: int) -> None:
        claims = await self._store.claim(replica, limit, suspect=True)
        assert len(claims) <= limit
        for claim in claims:
            owner = owner_of(self._store, self._news[claim.fence.run_id], claim)
            await self._begin(owner)
            self._owners.append((replica, owner))

    async def _begin(self, owner: Owner) -> None:
        """The first write of an attempt: the run's own first one, or that it goes on from its last checkpoint."""
        loaded = await self._store.load(owner.run_id)
        if loaded.checkpoint is None:
            await owner.start()
            return
        owner.step = loaded.checkpoint.step
        owner.wakes = loaded.stimuli.wakes
        owner.usage = loaded.run.usage
        if loaded.checkpoint.phase is Phase.EXECUTE_TOOLS:
            # Whatever a person has answered, or has not had the time to: the call goes on here.
            owner.calls = tuple(replace(call, hold=None, started=True) for call in loaded.calls)
        data = {"reason": "crash", "attempt": loaded.run.attempt, "from_seq": loaded.checkpoint_seq}
        again = Event(EventType.RUN_RESUMED, owner.step, data)
        # One that goes on before a model call asks for it again, and so begins its step again.
        await owner.surely(again, opening=() if owner.calls else begins(owner.step))

    async def _own(self, replica: str, owner: Owner, what: str) -> None:
        current = await self._is_current(owner)
        if current:
            assert await self._written(owner, what), f"{what}: the fence refused the run's owner"
        else:
            await self._write_late(owner)
        status = (await self._store.get(owner.run_id)).status
        if status is not S.RUNNING or not await self._is_current(owner):
            self._owners.remove((replica, owner))
            if not current:
                self._late.append(owner)

    async def _written(self, owner: Owner, what: str) -> Committed | Woken | bool | None:
        await owner.look()
        match what:
            case "say":
                return isinstance(await owner.say("some ", "words"), Committed)
            case "ask a person" if not owner.calls:
                return await self._ask(owner)
            case "finish" | "fail" if not owner.calls:
                return await self._finish(owner, S.COMPLETED if what == "finish" else S.FAILED)
            case "release" if not owner.calls:
                return await self._store.release(owner.fence, 1.0)
            case _ if not owner.calls:
                return await owner.surely(answered(owner.step), **_a_call(owner))
            case _ if owner.calls[0].result is None:
                return await owner.end_call(0)
            case _:
                told = Message(Role.TOOL, "found", tool_call_id=owner.calls[0].call.id)
                return await owner.close_step(messages=(told,))

    async def _finish(self, owner: Owner, status: S) -> Committed:
        error = None if status is S.COMPLETED else STOPPED
        state = RunState(step=owner.step, usage=owner.usage)
        return await owner.finish(status, opening=(closing_event(state, status, "done", error),))

    async def _ask(self, owner: Owner) -> Committed:
        question = replace(a_question(), step=owner.step, tool_call_id=f"call-{owner.step}")
        kept = Hold(HoldKind.INTERACTION, question.interaction_id, question=question.kind)
        call = OpenCall(0, _call_of(owner), ToolEffect.IDEMPOTENT, hold=kept)
        return await hold(owner, call, interactions=(question,))

    async def _is_current(self, owner: Owner) -> bool:
        run = await self._store.get(owner.run_id)
        return run.status is S.RUNNING and run.epoch == owner.fence.epoch

    async def _write_late(self, owner: Owner) -> None:
        before = await self._store.get(owner.run_id)
        assert await owner.try_write(answered(owner.step, "too late")) is None
        assert not isinstance(await owner.say("too late"), Committed)
        assert not await self._store.release(owner.fence, 1.0)
        after = await self._store.get(owner.run_id)
        assert (after.last_event_seq, after.status) == (before.last_event_seq, before.status)

    async def _crash(self, replica: str) -> None:
        other = REPLICAS[replica == OWNER]
        async with self._database.connection() as connection:
            await heartbeats.leave(connection, replica)
            await self._beat((other,))
            _, given_up = await recovery.requeue_orphans(connection, other, 15.0, 100)
        for run_id in given_up:
            async with self._database.transaction() as connection:
                assert (await recovery.poison(connection, run_id)).run.status is S.FAILED
        await self._beat(REPLICAS)
        self._lost_all(replica)

    async def _come_back(self, replica: str) -> None:
        async with self._database.connection() as connection:
            owned = await recovery.owned_runs(connection, replica)
            await recovery.put_back(connection, replica, {run_id: run.epoch for run_id, run in owned.items()})
        self._lost_all(replica)

    def _lost_all(self, replica: str) -> None:
        self._late += [owner for who, owner in self._owners if who == replica]
        self._owners = [(who, owner) for who, owner in self._owners if who != replica]

    async def _beat(self, replicas: tuple[str, ...]) -> None:
        async with self._database.connection() as connection:
            for replica in replicas:
                await heartbeats.beat(connection, replica, Process("here", 1), draining=False)

    async def _end(self) -> None:
        """Every run has a way to its end."""
        await self._check()
        for replica in REPLICAS:
            await self._come_back(replica)
        for _ in range(2 * len(self._news) + 2):
            for run_id in self._news:
                if (await self._store.get(run_id)).status is S.PAUSED:
                    await self._store.resume(run_id, None)
                await self._decide(run_id, True)
            await self._claim(OWNER, 100)
            for replica, owner in list(self._owners):
                while owner.calls:
                    await self._own(replica, owner, "go on")
                await self._own(replica, owner, "finish")
        ends = {run_id: (await self._store.get(run_id)).status for run_id in self._news}
        assert all(status.terminal for status in ends.values()), ends
        await self._check()

    async def _check(self) -> None:
        async with self._database.connection() as connection:
            await check_invariants(connection)  # type: ignore[arg-type]


def _call_of(owner: Owner) -> ToolCall:
    return ToolCall(f"call-{owner.step}", "look", '{"q": 1}')


def _a_call(owner: Owner) -> dict[str, Any]:
    """The parts with which the model asks for one call, whose id no other step of the run has."""
    owner.calls = (OpenCall(0, _call_of(owner), ToolEffect.READ_ONLY, started=True),)
    owner.usage += Usage(llm_calls=1, input_tokens=10, output_tokens=5)
    return {
        "usage": owner.usage,
        "opening": (Event(EventType.TOOL_BATCH_STARTED, owner.step, {"tool_call_count": 1}),),
        "messages": (Message(Role.ASSISTANT, "", (_call_of(owner),)),),
        "records": tuple(ToolRecord(owner.step, call) for call in owner.calls),
        "checkpoint": owner.checkpoint(Phase.EXECUTE_TOOLS),
    }


def test_whatever_happens_to_runs_nothing_is_lost_and_all_of_them_can_end(
    postgres_server: str, pytestconfig: Any
) -> None:
    full = pytestconfig.getoption("--chaos-full")
    sizes = settings(
        max_examples=500 if full else 40,
        stateful_step_count=50 if full else 30,
        derandomize=not full,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
        phases=(Stage.generate, Stage.shrink),
    )
    with asyncio.Runner() as runner:
        made = fresh_database(postgres_server)
        url = runner.run(made.__aenter__())
        database = runner.run(Database.connect(url))
        try:

            def machine() -> Runs:
                runner.run(_emptied(database))
                return Runs(database, runner.run)

            run_state_machine_as_test(machine, settings=sizes)  # pyright: ignore[reportArgumentType] - any factory will do
        finally:
            runner.run(database.close())
            runner.run(made.__aexit__(None, None, None))


async def _emptied(database: Database) -> None:
    tables = "runs, threads, messages, run_events, checkpoints, tool_executions, interactions, replicas, agents"
    async with database.connection() as connection:
        await connection.execute(f"TRUNCATE {tables}, agent_versions, idempotency_keys")
    await postgres_subject(database)
