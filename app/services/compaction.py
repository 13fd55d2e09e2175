"""Compaction of a thread at a caller's request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from app.engine.compaction import KEEP_LAST, NewCompaction, cut, is_summary, summary_message, summary_of
from app.engine.errors import ModelError
from app.engine.messages import Message
from app.engine.model import ModelClient, ModelRequest
from app.engine.ports import ThreadStore
from app.engine.records import ThreadView
from app.engine.store_errors import StoreUnavailable, ThreadBusy
from app.engine.usage import Usage
from app.llm.summary import Summary, summarise
from app.llm.token_estimate import message_tokens
from app.services.errors import Invalid, ModelUnavailable, NotFound

MOST_S = 300.0


@dataclass(frozen=True, slots=True)
class CompactThread:
    """
    Args:
        keep_last: how many of the last messages stay as they are.
        model: who writes the summary; None for the model of the thread's latest run.
        purge: whether the messages that a summary stands for are deleted.
    """

    thread_id: str
    keep_last: int = KEEP_LAST
    model: str | None = None
    purge: bool = False
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class ThreadCompacted:
    """What it came to.

    Args:
        summary: that stands in the thread now; None where it is too short to need one.
        messages_compacted: how many messages this call has put into the summary.
        tokens_before, tokens_after: of the conversation that runs see, estimated.
        usage, cost_usd: of the model calls; None where a price is unknown.
    """

    summary: str | None
    messages_compacted: int
    tokens_before: int
    tokens_after: int
    model: str | None
    usage: Usage
    cost_usd: Decimal | None


class CompactionService:
    """
    Args:
        check_model: what is wrong with a model's name, for people; None if nothing is.
    """

    def __init__(self, threads: ThreadStore, models: ModelClient, check_model: Callable[[str], str | None]) -> None:
        self._threads = threads
        self._models = models
        self._check_model = check_model
        self._closing = False
        self._writing: set[asyncio.Timeout] = set()

    def close(self) -> None:
        """This replica stops: models that write summaries are left, and whoever waits is told to go elsewhere."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for limit in self._writing:
            if not limit.expired():
                limit.reschedule(now)

    async def compact(self, command: CompactThread) -> ThreadCompacted:
        """Summarise what is before the last messages. Appends meanwhile are not in the summary, and stay.

        Nothing is locked while the model writes.

        Raises:
            NotFound: there is no such thread.
            ThreadNotFound: it was deleted while the model wrote.
            ThreadBusy: a run has it, or took it meanwhile.
            CompactedMeanwhile: it was compacted by others while the model wrote.
            Invalid: the model cannot be used, or none is known.
            ModelUnavailable: the model did not write a whole summary that is shorter than what it stands for.
            StoreUnavailable: this replica stops.
        """
        view = await self._threads.thread(command.tenant_id, command.thread_id)
        if view is None:
            raise NotFound(f"there is no thread {command.thread_id!r}")
        if view.active_run_id is not None:
            raise ThreadBusy(f"run {view.active_run_id} has the thread")
        model = command.model or view.model
        problem = None if model is None else self._check_model(model)
        if problem is not None:
            raise Invalid(problem, ("body", "model"))
        tokens = sum(message_tokens(entry.message) for entry in view.messages)
        parted = cut(view.messages, command.keep_last)
        if parted is None:
            return await self._as_it_is(view, command, tokens)
        if model is None:
            raise Invalid("the thread had no run whose model could be used: name one", ("body", "model"))
        request = ModelRequest(model, (), tenant_id=command.tenant_id)
        summary = await self._summary(request, [entry.message for entry in parted.old])
        made = NewCompaction(parted.upto_seq, summary.text)
        await self._threads.compact(view.thread_key, made, purge_upto=parted.upto_seq if command.purge else None)
        old = sum(message_tokens(entry.message) for entry in parted.old)
        return ThreadCompacted(
            summary=summary.text,
            messages_compacted=sum(not is_summary(entry) for entry in parted.old),
            tokens_before=tokens,
            tokens_after=tokens - old + message_tokens(summary_message(made).message),
            model=summary.model,
            usage=summary.usage,
            cost_usd=summary.cost_usd,
        )

    async def _summary(self, request: ModelRequest, messages: Sequence[Message]) -> Summary:
        """Raises: ModelUnavailable, StoreUnavailable."""
        if self._closing:
            raise _stops()
        limit = asyncio.timeout(MOST_S)
        try:
            async with limit:
                self._writing.add(limit)
                return await summarise(self._models, request, messages)
        except ModelError as error:
            raise ModelUnavailable(f"the summary was not written: {error.message}") from error
        except TimeoutError:
            if not limit.expired():
                raise
            if self._closing:
                raise _stops() from None
            raise ModelUnavailable(f"the summary was not written within {MOST_S:g} s") from None
        finally:
            self._writing.discard(limit)

    async def _as_it_is(self, view: ThreadView, command: CompactThread, tokens: int) -> ThreadCompacted:
        """Nothing to put into a summary; what one stands for already may still be purged."""
        first = view.messages[0] if view.messages and is_summary(view.messages[0]) else None
        if command.purge and first is not None:
            await self._threads.compact(view.thread_key, None, purge_upto=first.seq)
        text = None if first is None else summary_of(first)
        return ThreadCompacted(text, 0, tokens, tokens, None, Usage(), Decimal(0))


def _stops() -> StoreUnavailable:
    return StoreUnavailable("this replica is shutting down; send the request elsewhere")
