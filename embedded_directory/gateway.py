"""What stands before the API, as a host's proxy does: it keeps the journal and lets faults happen."""

import asyncio
import json
import time
from contextlib import suppress
from uuid import UUID

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedded_directory.control import CONTROL_PREFIX
from embedded_directory.directory import Call, Directory
from embedded_directory.faults import Sleep
from embedded_directory.mishaps import Host, carry_out
from embedded_directory.wire import Answer, Exchange


class Gateway:
    """The ASGI application that the server runs; raw ASGI, since benchmarks send thousands of calls a second."""

    def __init__(self, directory: Directory, api: ASGIApp, control: ASGIApp) -> None:
        self.directory = directory
        self.host: Host
        self._api = api
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # Only the end of the process cancels a call, and that is nothing to report.
        with suppress(asyncio.CancelledError):
            if scope["path"].startswith(CONTROL_PREFIX):
                await self._control(scope, receive, send)
            else:
                await self._journalled(scope, receive, send)

    async def _journalled(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, _ = scope["client"] or ("", 0)  # nobody, when the connection broke as it was made
        call = self.directory.arrival(scope["method"], scope["path"], client)
        record, transport = call.record, scope["transport"]
        scope["call"] = call

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and not transport.is_closing():
                record.status = message["status"]
            await send(message)

        try:
            if self.directory.calm:
                await self._api(scope, receive, noted)
            else:
                await self._troubled(Exchange(call, self._api, scope, receive, noted))
        finally:
            record.ended = time.time()

    async def _troubled(self, exchange: Exchange) -> None:
        """Answer a call that a fault may befall."""
        call, directory = exchange.call, self.directory
        batch_id = _batch_id(call, await exchange.read_body())
        if batch_id:
            call.record.batch_id = str(batch_id)
        if not directory.seconds_asleep and (fault := directory.faults.pick(call.record.kind, batch_id)):
            call.record.fault = fault.kind
            if not isinstance(fault, Sleep):
                await carry_out(self.host, exchange, fault)
                return
            directory.fall_asleep(fault.seconds, fault.status)
        if directory.seconds_asleep:
            call.record.fault = "sleep"
            if directory.sleep_status:
                await exchange.answer(Answer.plain(directory.sleep_status))
                return
            await asyncio.sleep(directory.seconds_asleep)
        await exchange.pass_on()


def _batch_id(call: Call, body: bytes) -> UUID | None:
    """Return the batch that a call is about, which for a create only its body says."""
    with suppress(ValueError, TypeError, KeyError):
        return UUID(call.record.batch_id or json.loads(body)["creation_batch_id"])
    return None
