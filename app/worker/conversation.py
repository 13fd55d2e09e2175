"""The thread as its run sees it, and the model requests that are made of it."""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.compaction import KEEP_LAST, CompactionReason, Cut, NewCompaction, cut, with_summary
from app.engine.messages import Message, ThreadMessage
from app.engine.model import ModelRequest, ModelResponse
from app.engine.model_request import build_request
from app.engine.ownership import Committed
from app.engine.ports import RunStore
from app.engine.state import RunState
from app.engine.tools import ToolSpec
from app.llm.token_estimate import estimate_input, message_tokens
from app.worker.start import Start


class Conversation:
    """What one attempt at a run knows of its thread.

    Attributes:
        tools: what the model may call.
        last_seq: the last message of the thread that is known.
        used_ids: the tool call ids of the run so far, those of compacted messages among them.
    """

    def __init__(self, start: Start, store: RunStore) -> None:
        self._agent = start.agent
        self._run = start.run
        self._store = store
        self._messages = list(start.messages)
        self._counted: tuple[int, int] | None = None  # tokens, and how many messages of a request they are of
        self.tools: tuple[ToolSpec, ...] = ()
        self.last_seq = start.message_seq
        self.used_ids = start.used_ids | {
            call.id for entry in start.messages if entry.run_id == start.run.run_id for call in entry.message.tool_calls
        }

    async def take_in(self, committed: Committed, added: Sequence[Message]) -> bool:
        """Take in what a write has added to the thread, and what others have before it.

        Returns:
            False if others have: a request that was built before is not of the whole thread.
        """
        self.used_ids |= {call.id for message in added for call in message.tool_calls}
        first = committed.first_message_seq
        if first is None or committed.message_seq is None:
            return True
        follows = first == self.last_seq + 1
        if follows:
            run_id = self._run.run_id
            self._messages += [ThreadMessage(first + place, message, run_id) for place, message in enumerate(added)]
        else:
            self._messages += await self._store.messages_after(self._run.thread_key, self.last_seq)
        self.last_seq = committed.message_seq
        return follows

    def compact(self, compaction: NewCompaction) -> None:
        """Take in a summary that stands in the thread now."""
        self._messages = with_summary(self._messages, compaction)
        self._counted = None

    def request(
        self, state: RunState, new: Sequence[Message] = (), compaction: NewCompaction | None = None
    ) -> ModelRequest:
        """The request of the model call that comes next, once `new` and a summary are in the thread."""
        known = self._messages if compaction is None else with_summary(self._messages, compaction)
        messages = (*(entry.message for entry in known), *new)
        run = self._run
        return build_request(
            self._agent, run.context, messages, self.tools, repair=state.repair, tenant_id=run.tenant_id
        )

    def count(self, request: ModelRequest, response: ModelResponse) -> None:
        """Take a provider's own count of a request; together with its answer, which is the next message."""
        known = not response.usage_estimated and not response.reused
        self._counted = (response.usage.total_tokens, len(request.messages) + 1) if known else None

    def is_too_long(self, request: ModelRequest) -> bool:
        """Whether a request is past the agent's bound, and a summary could make it shorter."""
        most = self._agent.definition.auto_compact_at_tokens
        return most is not None and self._tokens_of(request) >= most and self._cut(request) is not None

    def cut(self, state: RunState) -> Cut | None:
        """Where the thread is parted for the compaction that the state wants; None where it cannot be.

        So much is cut off that it need not be again after a few more messages: half of the bound, or, as nobody tells
        by how much a conversation is too long for its model, of what there is.
        """
        if state.compacting is not None and state.compacting.reason is CompactionReason.CONTEXT_OVERFLOW:
            tokens = sum(message_tokens(entry.message) for entry in self._messages)
            return cut(self._messages, KEEP_LAST, most_tokens=tokens // 2, tokens_of=message_tokens)
        return self._cut(self.request(state))

    def _cut(self, request: ModelRequest) -> Cut | None:
        most = self._agent.definition.auto_compact_at_tokens or 0
        # Messages are estimated one by one; the provider may count more, or fewer, for all of them.
        share = estimate_input(request) / max(1, self._tokens_of(request))
        return cut(self._messages, KEEP_LAST, most_tokens=int(most // 2 * share), tokens_of=message_tokens)

    def _tokens_of(self, request: ModelRequest) -> int:
        """As the provider last counted the conversation, and estimated since."""
        if self._counted is None:
            return estimate_input(request)
        tokens, messages = self._counted
        return tokens + sum(message_tokens(message) for message in request.messages[messages:])
