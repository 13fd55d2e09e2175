"""Leaving a model alone that keeps failing, so that nobody waits for it and it can come back."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import assert_never

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelClient, ModelEvent, ModelRequest
from app.llm.model_names import OFFLINE
from app.llm.output import OUTPUT
from app.telemetry.logs import get_logger
from app.telemetry.metrics import MOST_NAMES, Labels, Metrics

# Whoever meets a probe that is under way comes again after so long.
PROBE_RETRY_S = 1.0
# Only models that have just failed are remembered; callers name them, so there may be any number.
MOST_CIRCUITS = 1000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CircuitLimits:
    """
    Args:
        failures: how many in a row open a circuit.
        open_s: seconds until a first call may try again.
    """

    failures: int = 5
    open_s: float = 30.0


class _Outcome(Enum):
    ANSWERED = auto()
    REFUSED = auto()  # for what the caller sent: the provider works
    FAILED = auto()
    UNKNOWN = auto()  # cancelled, or told to come later


class _Probe:
    """The one call that tries whether an open circuit can close."""


@dataclass(slots=True)
class _Circuit:
    """A model that has failed lately. `open_until` is None while it may be called."""

    limits: CircuitLimits
    failures: int = 0
    open_until: float | None = None
    probe: _Probe | None = None


class CircuitBreakerClient:
    """A `ModelClient` that stops calling a model of another one after a number of failures in a row.

    Failures are timeouts, connections that break, 5xx and answers that cannot be read; a caller's own mistake, and
    being told to come later (429), say nothing about a provider's health. An open circuit refuses calls
    (CIRCUIT_OPEN, with the time to wait) until `open_s` have passed; then one call goes through as a probe. If that
    is answered the circuit closes, if it fails it opens again, and if it is cancelled the next call is the probe.
    As soon as a probe has brought a first piece others may follow, but then a single failure opens the circuit
    again.

    Args:
        limits: by provider, the prefix of the models' names.
        default: for all other providers.
        most_circuits: how many models that fail are remembered; beyond it, the one that began to fail first is not.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        inner: ModelClient,
        limits: Mapping[str, CircuitLimits] | None = None,
        *,
        default: CircuitLimits | None = None,
        most_circuits: int = MOST_CIRCUITS,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._limits = limits or {}
        self._default = default or CircuitLimits()
        self._most_circuits = most_circuits
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}
        self._opened = 0
        if metrics is not None:
            metrics.gauge(
                "agent_runner.model.circuits", "Models that are not called because they kept failing.", self._states
            )
            metrics.counter(
                "agent_runner.model.circuits.opened",
                "How often a model was left alone because it kept failing.",
                lambda: [(self._opened, {})],
            )

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; raises `ModelError` CIRCUIT_OPEN where the model is not called."""
        if request.model.partition("/")[0] in OFFLINE:
            return self._inner.stream(request)
        return self._watched(request)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _watched(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        key = _circuit_key(request)
        probe = self._enter(key, request.model) if self._circuits else None
        unheard = probe is not None
        outcome = _Outcome.UNKNOWN
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    if unheard and isinstance(event, OUTPUT):
                        unheard = False
                        self._let_others_follow(key, probe)
                    yield event
            outcome = _Outcome.ANSWERED
        except ModelError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            if self._circuits or outcome is _Outcome.FAILED:
                self._settle(key, probe, request.model, outcome)

    def _enter(self, key: str, model: str) -> _Probe | None:
        """Begin a call; None where it is a call like any other.

        Raises:
            ModelError: CIRCUIT_OPEN.
        """
        circuit = self._circuits.get(key)
        if circuit is None or circuit.open_until is None:
            return None
        wait_s = circuit.open_until - self._clock()
        if wait_s > 0 or circuit.probe is not None:
            wait_s = wait_s if wait_s > 0 else PROBE_RETRY_S
            raise ModelError(
                ModelErrorCode.CIRCUIT_OPEN,
                f"{model} has failed {circuit.failures} times in a row and is not called for another {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        circuit.probe = _Probe()
        return circuit.probe

    def _let_others_follow(self, key: str, probe: _Probe | None) -> None:
        """A first piece has come. The whole answer may take minutes, so nobody waits for that; but for now a single
        failure, this call's own or another one's, opens the circuit again."""
        circuit = self._circuits.get(key)
        if circuit is not None and circuit.probe is probe:
            circuit.probe = circuit.open_until = None
            circuit.failures = circuit.limits.failures - 1

    def _settle(self, key: str, probe: _Probe | None, model: str, outcome: _Outcome) -> None:
        circuit = self._circuits.get(key)
        probed = circuit is not None and probe is not None and circuit.probe is probe
        if circuit is not None:
            if probed:
                circuit.probe = None
            elif circuit.open_until is not None:
                return  # it began before the circuit opened, and tells nothing new
        match outcome:
            case _Outcome.FAILED:
                self._failed(circuit or self._new(key, model), model)
            case _Outcome.ANSWERED:
                self._close(key, model)
            case _Outcome.REFUSED if probed:
                self._close(key, model)
            case _Outcome.REFUSED | _Outcome.UNKNOWN:
                pass
            case _:
                assert_never(outcome)

    def _failed(self, circuit: _Circuit, model: str) -> None:
        circuit.failures += 1
        if circuit.failures < circuit.limits.failures:
            return
        circuit.open_until = self._clock() + circuit.limits.open_s
        self._opened += 1
        log.warning("circuit_opened", model=model, failures=circuit.failures, open_s=circuit.limits.open_s)

    def _close(self, key: str, model: str) -> None:
        circuit = self._circuits.pop(key, None)
        if circuit is not None and circuit.open_until is not None:
            log.info("circuit_closed", model=model)

    def _new(self, key: str, model: str) -> _Circuit:
        while len(self._circuits) >= self._most_circuits:
            del self._circuits[next(iter(self._circuits))]
        limits = self._limits.get(model.partition("/")[0], self._default)
        circuit = self._circuits[key] = _Circuit(limits)
        return circuit

    def _states(self) -> Iterator[tuple[float, Labels]]:
        now = self._clock()
        for key, circuit in islice(self._circuits.items(), MOST_NAMES):
            if circuit.open_until is not None:
                provider, _, model = key.partition("/")
                state = "open" if now < circuit.open_until else "half_open"
                yield 1, {"gen_ai.provider.name": provider, "gen_ai.request.model": model, "state": state}


def _circuit_key(request: ModelRequest) -> str:
    """What shares a circuit: calls of one model with one key. Every key is the operator's, and one for a provider, so
    the model's full name says it; where callers bring keys of their own, theirs belong in here."""
    return request.model


def _outcome_of(error: ModelError) -> _Outcome:
    match error.code:
        case (
            ModelErrorCode.TIMEOUT
            | ModelErrorCode.CONNECTION
            | ModelErrorCode.SERVER_ERROR
            | ModelErrorCode.INVALID_RESPONSE
        ):
            return _Outcome.FAILED
        case ModelErrorCode.RATE_LIMITED | ModelErrorCode.CIRCUIT_OPEN:
            return _Outcome.UNKNOWN
        case (
            ModelErrorCode.CONFLICT
            | ModelErrorCode.AUTHENTICATION
            | ModelErrorCode.INVALID_REQUEST
            | ModelErrorCode.MODEL_NOT_FOUND
            | ModelErrorCode.CONTEXT_OVERFLOW
        ):
            return _Outcome.REFUSED
        case _:
            assert_never(error.code)
