"""Carries out the faults: what each kind does to a call and to its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from fastapi.responses import HTMLResponse

from embedded_directory.api import rate_limited
from embedded_directory.directory import Directory
from embedded_directory.faults import (
    Drip,
    Drop,
    Error,
    Fault,
    Garbage,
    HalfActivate,
    Hang,
    Late,
    Lose,
    RateLimit,
    Refuse,
    Restart,
)
from embedded_directory.wire import Answer, Exchange


class Host(Protocol):
    """What stands around the directory: its state, its network, and the work it does when nobody waits."""

    directory: Directory

    async def go_away(self, seconds: float) -> None:
        """Close every connection, and refuse new ones for ``seconds``."""

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something that no caller waits for."""


Mishap = Callable[[Host, Exchange, Any, Answer], Awaitable[None]]


async def carry_out(host: Host, exchange: Exchange, fault: Fault) -> None:
    """Do to this call what the fault says; a call that is not performed has a plain 500 for an answer."""
    exchange.call.fault = fault
    answer = Answer.plain(500)
    if fault.when == "after" and not isinstance(fault, Late):
        answer = await exchange.perform()
    await _MISHAPS[type(fault)](host, exchange, fault, answer)


async def _refuse(host: Host, exchange: Exchange, fault: Refuse, _answer: Answer) -> None:
    await host.go_away(fault.seconds)
    await exchange.gone()


async def _restart(host: Host, exchange: Exchange, fault: Restart, _answer: Answer) -> None:
    host.directory.restart()
    await host.go_away(fault.seconds)
    await exchange.gone()


async def _drop(_host: Host, exchange: Exchange, fault: Drop, answer: Answer) -> None:
    if fault.bytes:
        await exchange.write([(answer.head() + answer.body)[: fault.bytes]])
    await exchange.close(reset=fault.reset)


async def _error(_host: Host, exchange: Exchange, fault: Error, _answer: Answer) -> None:
    await exchange.answer(Answer.plain(fault.status, fault.retry_after))


async def _hang(_host: Host, exchange: Exchange, fault: Hang, _answer: Answer) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(fault.seconds):
            await exchange.gone()
    await exchange.close()


async def _drip(_host: Host, exchange: Exchange, fault: Drip, answer: Answer) -> None:
    head, body = answer.head(), answer.body
    exchange.call.record.status = answer.status
    await exchange.write(_single_bytes(head) if fault.part == "head" else [head], fault.seconds)
    await exchange.write(_single_bytes(body) if fault.part == "body" else [body], fault.seconds)
    await exchange.close()


async def _late(host: Host, exchange: Exchange, fault: Late, _answer: Answer) -> None:
    call = exchange.call
    delays = {"create_seconds": fault.seconds, "read_seconds": fault.seconds}
    call.settings = call.settings.model_copy(update=delays)
    host.in_background(exchange.perform())
    if fault.status is None:
        await exchange.close()
    else:
        await exchange.answer(Answer.plain(fault.status))


async def _garbage(_host: Host, exchange: Exchange, fault: Garbage, _answer: Answer) -> None:
    if fault.raw:
        await exchange.write([fault.body.encode()])
        await exchange.close()
    else:
        await exchange.answer(Answer.of(HTMLResponse(fault.body)))


async def _rate_limit(_host: Host, exchange: Exchange, fault: RateLimit, _answer: Answer) -> None:
    settings, kind = exchange.call.settings, exchange.call.record.kind
    limit = {"create": settings.create_limit, "root": settings.root_limit}.get(kind, settings.other_limit)
    await exchange.answer(Answer.of(rate_limited(limit or "30 per 1 minute", fault.retry_after)))


async def _lose(_host: Host, exchange: Exchange, _fault: Lose, answer: Answer) -> None:
    await exchange.answer(answer)


async def _half_activate(_host: Host, exchange: Exchange, fault: HalfActivate, answer: Answer) -> None:
    await exchange.answer(answer if fault.status == 200 else Answer.plain(fault.status))


def _single_bytes(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


_MISHAPS: dict[type, Mishap] = {
    Refuse: _refuse,
    Restart: _restart,
    Drop: _drop,
    Error: _error,
    Hang: _hang,
    Drip: _drip,
    Late: _late,
    Garbage: _garbage,
    RateLimit: _rate_limit,
    Lose: _lose,
    HalfActivate: _half_activate,
}
