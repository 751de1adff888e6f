"""The API of the deployed directory. Shapes of 404, 405, 307 and 422 are FastAPI's own, as they are there."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

from embedded_directory.directory import Call, Instance
from embedded_directory.faults import HalfActivate, Lose
from embedded_directory.limits import Limit
from embedded_directory.memory import Hospital

api = FastAPI(openapi_url=None)
"""The API as an ASGI application; it expects a Call in each request's scope."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be only white space")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class HospitalIn(BaseModel):
    """The body of a create and of an update; values are kept as sent, untrimmed."""

    name: Text
    address: Text
    phone: str | None = None
    creation_batch_id: UUID | None = None


class RateLimitedError(Exception):
    """A call is over its limit."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(str(limit))


def rate_limited(limit: object, retry_after: int | None = None) -> Response:
    """Answer 429 as the deployed directory does: its own shape, and no Retry-After unless one is given."""
    headers = None if retry_after is None else {"retry-after": str(retry_after)}
    return JSONResponse({"error": f"Rate limit exceeded: {limit}"}, 429, headers)


@api.exception_handler(RateLimitedError)
async def _on_rate_limited(_request: Request, error: Exception) -> Response:
    return rate_limited(error)


def _call(request: Request) -> Call:
    call: Call = request.scope["call"]
    return call


@asynccontextmanager
async def _thread(call: Call, what: str, limit: Limit | None) -> AsyncIterator[Instance]:
    """Hold a thread of the pool for the block, as the deployed directory does from the limit to the answer."""
    instance = call.instance
    async with instance.threads:
        if limit and not instance.windows.admit((call.client, what), limit, time.monotonic()):
            raise RateLimitedError(limit)
        yield instance


@asynccontextmanager
async def _quick_thread(request: Request) -> AsyncIterator[Instance]:
    """Hold a thread for any call that is neither a create nor the root: these are counted for each path."""
    call = _call(request)
    async with _thread(call, call.record.path, call.settings.other_limit) as instance:
        await _pause(call.settings.read_seconds)
        yield instance


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


@api.get("/")
async def root(request: Request) -> Response:
    """Say that the directory is there."""
    call = _call(request)
    async with _thread(call, "/", call.settings.root_limit):
        await _pause(call.settings.read_seconds)
        return JSONResponse({"status": "OK"})


@api.post("/hospitals/")
async def create(hospital: HospitalIn, request: Request) -> Response:
    """Create a hospital, slowly. It commits at the end, whether or not the caller is still there."""
    call = _call(request)
    settings, batch_id = call.settings, hospital.creation_batch_id
    call.record.batch_id = str(batch_id) if batch_id else None
    async with _thread(call, "create", settings.create_limit) as instance:
        # Before the pause, so creates that come together all pass: the deployed directory is as racy.
        if batch_id and 0 < settings.batch_size <= instance.memory.batch_size(batch_id):
            raise HTTPException(400, f"Batch cannot exceed {settings.batch_size} hospitals")
        await _pause(settings.create_seconds)
        created = instance.memory.add(
            hospital.name, hospital.address, hospital.phone, batch_id, at_most=settings.max_hospitals
        )
        if isinstance(call.fault, Lose):
            instance.memory.delete(created.id)
        return JSONResponse(created.as_json())


@api.get("/hospitals/")
async def list_all(request: Request) -> Response:
    """List every hospital."""
    async with _quick_thread(request) as instance:
        return _listing(list(instance.memory.all()))


@api.get("/hospitals/{hospital_id}")
async def get_one(hospital_id: int, request: Request) -> Response:
    """Return one hospital."""
    async with _quick_thread(request) as instance:
        return JSONResponse(_found(instance.memory.get(hospital_id)).as_json())


@api.put("/hospitals/{hospital_id}")
async def update_one(hospital_id: int, changes: HospitalIn, request: Request) -> Response:
    """Set name, address and phone; nothing else can be set."""
    async with _quick_thread(request) as instance:
        hospital = _found(instance.memory.get(hospital_id))
        hospital.name, hospital.address, hospital.phone = changes.name, changes.address, changes.phone
        return JSONResponse(hospital.as_json())


@api.delete("/hospitals/{hospital_id}")
async def delete_one(hospital_id: int, request: Request) -> Response:
    """Remove every hospital with this id."""
    async with _quick_thread(request) as instance:
        _found(instance.memory.get(hospital_id))
        instance.memory.delete(hospital_id)
        return Response(status_code=204)


@api.get("/hospitals/batch/{batch_id}")
async def list_batch(batch_id: UUID, request: Request) -> Response:
    """List the hospitals of a batch."""
    async with _quick_thread(request) as instance:
        return _listing(_batch(instance, batch_id))


@api.patch("/hospitals/batch/{batch_id}/activate")
async def activate(batch_id: UUID, request: Request) -> Response:
    """Activate a batch, once: what is created later can never be activated."""
    async with _quick_thread(request) as instance:
        hospitals = _batch(instance, batch_id)
        if any(hospital.active for hospital in hospitals):
            raise HTTPException(400, "Cannot activate batch: one or more hospitals in the batch are already active")
        if isinstance(_call(request).fault, HalfActivate):
            hospitals = hospitals[: len(hospitals) // 2]
        for hospital in hospitals:
            hospital.active = True
        count = len(hospitals)
        return JSONResponse({"activated_count": count, "message": f"Successfully activated {count} hospitals"})


@api.delete("/hospitals/batch/{batch_id}")
async def delete_batch(batch_id: UUID, request: Request) -> Response:
    """Remove every hospital of a batch, active ones too."""
    async with _quick_thread(request) as instance:
        hospitals = _batch(instance, batch_id)
        for hospital in hospitals:
            instance.memory.delete(hospital.id)
        count = len(hospitals)
        return JSONResponse({"deleted_count": count, "message": f"Successfully deleted {count} hospitals"})


def _found(hospital: Hospital | None) -> Hospital:
    if hospital is None:
        raise HTTPException(404, "Hospital not found")
    return hospital


def _batch(instance: Instance, batch_id: UUID) -> list[Hospital]:
    hospitals = instance.memory.batch(batch_id)
    if not hospitals:
        raise HTTPException(404, "No hospitals found with the specified batch ID")
    return hospitals


def _listing(hospitals: list[Hospital]) -> Response:
    return JSONResponse([hospital.as_json() for hospital in hospitals])
