"""Any sequence of what callers, owners and crashes do to runs, on the real queries: nothing is lost, and all can end.

Hypothesis makes the sequences and shrinks one that breaks a promise. Runs are driven by hand, as an owner drives them,
and the machine keeps a book of who owns what, which the rows have to agree with after every step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.db import heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.run_store import PostgresRunStore
from app.engine.crashes import MAX_CRASHES, MAX_CRASHES_AMONG_OTHERS
from app.engine.ownership import Claim
from app.engine.records import NewRun, OnBusyThread
from app.engine.status import RunStatus as S
from app.engine.store_errors import ThreadBusy
from app.services.threads import ThreadService
from tests.conftest import fresh_database
from tests.contract.stores import OTHER_OWNER, OWNER, a_run, owner_of, postgres_subject, user
from tests.integration.attempts import Attempt
from tests.integration.callers import ALLOWED, DECISIONS, Callers, agree
from tests.invariants import check_invariants

THREADS = ("one", "two", "three")
REPLICAS = (OWNER, OTHER_OWNER)
# Chooses among what there is. What is drawn may not depend on that: in a race it is not the same every time.
PICK = st.integers(0, 59)
# What may happen to a run at one time; the last three are its owner's.
ACTS = st.sampled_from((*sorted(ALLOWED), *DECISIONS, "ask", "complete", "fail"))
# More claims than these of one run are not remembered: the first ones were refused often enough.
MOST_LATE = 4
CLAIMS_WITHIN_S = 10.0

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
        self._stores = {replica: PostgresRunStore(database) for replica in REPLICAS}
        self._store = self._stores[OWNER]
        self._callers = Callers(self._store)
        self._threads = ThreadService(database)
        self._broken = False
        self._news: dict[str, NewRun] = {}
        self._status: dict[str, S] = {}
        self._asked: set[str] = set()  # runs that have had a question
        self._held: dict[str, Attempt] = {}  # by run; the claims that are good
        self._late: dict[str, list[Attempt]] = {}  # by run; owners that have lost it and do not know that
        self.wait(self._beat(REPLICAS))

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._wait(work)
        except BaseException:
            self._broken = True
            raise

    def teardown(self) -> None:
        if not self._broken:
            self.wait(self._end())

    @initialize()
    def begin_with_two(self) -> None:
        """A run under way and one in line behind it, whichever rules this sequence has."""
        self.wait(self._create(a_run(THREADS[0]), OWNER))
        self.wait(self._create(a_run(THREADS[0]), None))
        self.wait(self._begin(next(iter(self._held.values()))))

    @invariant()
    def rows_agree_with_the_book(self) -> None:
        self.wait(self._compare())

    # --- callers --------------------------------------------------------------------------------------------------

    @rule(thread=st.sampled_from(THREADS), busy=st.sampled_from((*OnBusyThread, None)), claims=st.booleans())
    def create(self, thread: str, busy: OnBusyThread | None, claims: bool) -> None:
        if busy is None:
            self.wait(self._threads.append_message(thread, user("by hand")))
        else:
            self.wait(self._create(a_run(thread, on_busy_thread=busy), OWNER if claims else None))

    @rule(pick=PICK, asked=st.sampled_from(sorted(ALLOWED)))
    def steer(self, pick: int, asked: str) -> None:
        self.wait(self._callers.steer(self._some_run(pick), asked))

    @rule(pick=PICK, first=ACTS, second=ACTS)
    def act_at_once(self, pick: int, first: str, second: str) -> None:
        self.wait(self._at_once(self._some_run(pick), first, second))

    @rule(pick=PICK, approves=st.sampled_from((True, False, None)))
    def decide(self, pick: int, approves: bool | None) -> None:
        """A person answers, or the time of all questions is looked at."""
        if approves is None:
            self.wait(self._store.expire(100))
            return
        for run_id in _one_of(sorted(self._asked), pick):
            self.wait(self._callers.decide(run_id, approves))

    # --- owners ---------------------------------------------------------------------------------------------------

    @rule(replica=st.sampled_from(REPLICAS), limit=st.integers(1, 3))
    def claim(self, replica: str, limit: int) -> None:
        self.wait(self._claim(replica, limit))

    @rule(pick=PICK, locks=st.booleans())
    def claim_at_once(self, pick: int, locks: bool) -> None:
        queued = [run_id for run_id, status in self._status.items() if status is S.QUEUED and locks]
        self.wait(self._claim_at_once(next(iter(_one_of(queued, pick)), None)))

    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        for attempt in _one_of(self._claimed(begun=False), pick):
            self.wait(self._begin(attempt))

    @rule(pick=PICK, what=st.sampled_from(("go on", "go on again", "say", "complete", "fail", "release")))
    def own(self, pick: int, what: str) -> None:
        self.wait(self._own(self.wait(self._at_hand(pick)), what))

    @rule(pick=PICK, beside=st.booleans(), lapses=st.booleans(), then=ACTS)
    def ask(self, pick: int, beside: bool, lapses: bool, then: str) -> None:
        """Something happens to a run that waits for a person, or goes on beside the question."""
        self.wait(self._ask(self.wait(self._at_hand(pick)), beside, lapses, then))

    @rule(pick=PICK)
    def write_late(self, pick: int) -> None:
        """An owner that has lost its run lands no write, whatever has become of the run."""
        for attempt in _one_of([each for late in self._late.values() for each in late], pick):
            self.wait(attempt.lands_nothing())

    @rule(replica=st.sampled_from(REPLICAS), times=st.integers(0, MAX_CRASHES))
    def crash(self, replica: str, times: int) -> None:
        """A replica dies, takes its runs up and dies of them again; or it has let go of them and gives them back."""
        if not times:
            self.wait(self._come_back(replica))
        for _ in range(times):
            self.wait(self._crash(replica))
            self.wait(self._claim(replica, 100))

    # --- how ------------------------------------------------------------------------------------------------------

    def _some_run(self, pick: int) -> str:
        """One run; each status that there is comes as often as any other."""
        statuses = sorted(set(self._status.values()))
        status = statuses[pick % len(statuses)]
        of_it = [run_id for run_id, each in self._status.items() if each is status]
        return of_it[pick // len(statuses) % len(of_it)]

    async def _at_hand(self, pick: int) -> Attempt:
        """An attempt that has begun; if there is none, one begins, and if need be with a new run."""
        if not self._held:
            await self._claim(OWNER, 1)
        if not self._held:
            await self._create(a_run(), OWNER)
        if not self._claimed(begun=True):
            await self._begin(next(iter(self._held.values())))
        return _one_of(self._claimed(begun=True), pick)[0]

    def _claimed(self, *, begun: bool) -> list[Attempt]:
        return [attempt for attempt in self._held.values() if attempt.begun is begun]

    async def _create(self, new: NewRun, owner: str | None) -> None:
        try:
            created = await self._store.create(new, owner=owner)
        except ThreadBusy:
            assert new.on_busy_thread is OnBusyThread.REJECT
            return
        self._news[new.run_id] = new
        if created.claim is not None:
            assert owner is not None
            await self._taken(owner, created.claim)

    async def _at_once(self, run_id: str, *acts: str) -> None:
        agree(await asyncio.gather(*(self._act(run_id, each) for each in acts), return_exceptions=True))

    async def _act(self, run_id: str, act: str) -> object:
        if act in ALLOWED or act in DECISIONS:
            return await self._callers.act(run_id, act)
        attempt = self._held.get(run_id)
        if attempt is None or not attempt.begun:
            return None
        self._asked.add(run_id)
        return await attempt.race(act)

    async def _claim(self, replica: str, limit: int) -> None:
        claims = await self._stores[replica].claim(replica, limit, suspect=True)
        assert len(claims) <= limit
        assert sum(claim.suspect for claim in claims) <= 1
        for claim in claims:
            await self._taken(replica, claim)

    async def _claim_at_once(self, locked: str | None) -> None:
        """Both replicas look at once. A run that somebody has locked is left for later: a claim waits for nobody."""
        async with self._database.transaction() as connection:
            if locked is not None:
                await connection.execute("SELECT 1 FROM runs WHERE run_id = $1::uuid FOR NO KEY UPDATE", locked)
            looks = asyncio.gather(*(self._stores[each].claim(each, 100, suspect=True) for each in REPLICAS))
            found = await asyncio.wait_for(looks, CLAIMS_WITHIN_S)
        for replica, claims in zip(REPLICAS, found, strict=True):
            for claim in claims:
                assert claim.fence.run_id != locked
                await self._taken(replica, claim)

    async def _taken(self, replica: str, claim: Claim) -> None:
        """A claim is good from now on; every earlier one of the run is refused although nothing was written since."""
        run_id = claim.fence.run_id
        assert run_id not in self._held, "a run was claimed that has an owner"
        self._held[run_id] = Attempt(
            self._database, replica, owner_of(self._stores[replica], self._news[run_id], claim)
        )
        for late in self._late.get(run_id, []):
            await late.lands_nothing()

    async def _begin(self, attempt: Attempt) -> None:
        fence = attempt.owner.fence
        await attempt.begin()
        await attempt.lands_nothing(fence)

    async def _own(self, attempt: Attempt, what: str) -> None:
        await attempt.look()
        fence = attempt.owner.fence
        match what:
            case "say":
                await attempt.say()
            case "complete" if attempt.answers:
                await attempt.finish(S.COMPLETED)
            case "fail":
                await attempt.finish(S.FAILED)
            case "release" if attempt.answers:
                await attempt.release()
            case _:
                await attempt.go_on()
        await attempt.lands_nothing(fence)

    async def _ask(self, attempt: Attempt, beside: bool, lapses: bool, then: str) -> None:
        if await self._reached_model(attempt):
            await attempt.ask(beside=beside, lapses=lapses)
            self._asked.add(attempt.run_id)
            await self._at_once(attempt.run_id, then)
            await self._compare()
        if attempt.run_id in self._held:
            await self._own(attempt, "go on")

    async def _reached_model(self, attempt: Attempt) -> bool:
        """Go on until the model may be called; False if the run waits or pauses before that."""
        await attempt.look()
        while not attempt.answers and attempt.run_id in self._held:
            await attempt.go_on()
            await self._compare()
        return attempt.run_id in self._held

    async def _crash(self, replica: str) -> None:
        lost = {run_id for run_id, attempt in self._held.items() if attempt.replica == replica}
        before = await self._crashes()
        other = REPLICAS[replica == OWNER]
        async with self._database.connection() as connection:
            await heartbeats.leave(connection, replica)
            await self._beat((other,))
            requeued, given_up = await recovery.requeue_orphans(connection, other, 15.0, 100)
        after = await self._crashes()
        assert {run_id for run_id in after if after[run_id] != before[run_id]} == lost
        assert all(after[run_id] == before[run_id] + 1 for run_id in lost)
        certain = {run_id for run_id in lost if after[run_id] >= MAX_CRASHES_AMONG_OTHERS}
        assert certain <= set(given_up) <= {run_id for run_id in lost if after[run_id] >= MAX_CRASHES}
        assert requeued == len(lost) - len(given_up)
        self._lose(lost)
        if given_up:
            await self._claim(other, 100)
            assert not self._held.keys() & set(given_up), "a run that is given up was claimed once more"
        for run_id in given_up:
            async with self._database.transaction() as connection:
                assert (await recovery.poison(connection, run_id)).run.status is S.FAILED
        await self._beat(REPLICAS)

    async def _come_back(self, replica: str) -> None:
        async with self._database.connection() as connection:
            owned = await recovery.owned_runs(connection, replica)
            await recovery.put_back(connection, replica, {run_id: run.epoch for run_id, run in owned.items()})
        self._lose(set(owned))

    def _lose(self, run_ids: set[str]) -> None:
        for run_id in run_ids:
            late = self._late.setdefault(run_id, [])
            late.append(self._held.pop(run_id))
            del late[:-MOST_LATE]

    async def _compare(self) -> None:
        """A run has an owner as long as it runs, the one who claimed it last; none that is over asks for anything."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT run_id::text, status, owner::text, EXISTS (
                       SELECT 1 FROM interactions i WHERE i.run_id = r.run_id AND i.status = 'pending') AS asks
                   FROM runs r ORDER BY run_id"""
            )
        self._status = {row["run_id"]: S(row["status"]) for row in rows}
        self._lose({run_id for run_id in self._held if self._status[run_id] is not S.RUNNING})
        owners = {run_id: attempt.replica for run_id, attempt in self._held.items()}
        assert {row["run_id"]: row["owner"] for row in rows if row["status"] == "running"} == owners
        assert not [row["run_id"] for row in rows if row["status"] != "running" and row["owner"] is not None]
        assert not [row["run_id"] for row in rows if row["asks"] and S(row["status"]).terminal]

    async def _crashes(self) -> dict[str, int]:
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT run_id::text, crashes FROM runs")
        return {row["run_id"]: row["crashes"] for row in rows}

    async def _beat(self, replicas: tuple[str, ...]) -> None:
        for replica in replicas:
            async with self._database.connection() as connection:
                await heartbeats.beat(connection, replica, Process("here", 1), draining=False)

    async def _end(self) -> None:
        """Every run has a way to its end, and so has one that ended badly and is resumed."""
        await self._check()
        for replica in REPLICAS:
            await self._come_back(replica)
        for run_id in [each for each, status in self._status.items() if status in (S.FAILED, S.INTERRUPTED)]:
            await self._callers.steer(run_id, "resume")
        await self._compare()
        for _ in range(2 * len(self._news) + 2):
            for run_id, status in self._status.items():
                if status is S.PAUSED:
                    await self._store.resume(run_id, None)
                if not status.terminal:
                    await self._callers.decide(run_id, True)
            await self._claim(OWNER, 100)
            for attempt in list(self._held.values()):
                await attempt.begin()
                if await self._reached_model(attempt):
                    await attempt.finish(S.COMPLETED)
            await self._compare()
            if all(status.terminal for status in self._status.values()):
                return await self._check()
        raise AssertionError(f"some never end: {self._status}")

    async def _check(self) -> None:
        async with self._database.connection() as connection:
            await check_invariants(connection)  # type: ignore[arg-type]


def _one_of(choices: Sequence[_T], pick: int) -> Sequence[_T]:
    """One of these; none if there are none."""
    return choices[pick % len(choices) :][:1] if choices else ()


def test_whatever_happens_to_runs_nothing_is_lost_and_all_of_them_can_end(
    postgres_server: str, pytestconfig: Any
) -> None:
    """Seen to fail without epoch, write_no, status or wakes in the fence of a write, without any of the first three in
    that of deltas and of a release; with questions left open by a stop or by the owner's end; with the thread kept, or
    nobody promoted, at either; with crashes not counted, or a given-up run claimed; with a claim that locks nothing,
    waits for a lock or takes a run that runs; with a pause or a wait that keeps the owner; with stimuli not counted."""
    full = pytestconfig.getoption("--chaos-full")
    sizes = settings(
        max_examples=150 if full else 40,
        stateful_step_count=60 if full else 40,
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

            @seed(pytestconfig.getoption("--chaos-seed"))
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
        await connection.execute(f"TRUNCATE {tables}, agent_versions, idempotency_keys, crashes")
    await postgres_subject(database)
