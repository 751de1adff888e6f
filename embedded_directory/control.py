"""The control path ``/_embedded``: faults, the journal, settings. Never limited, delayed, journalled or faulted."""

from collections.abc import Iterable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from embedded_directory.directory import Directory
from embedded_directory.faults import Fault
from embedded_directory.journal import CallKind
from embedded_directory.settings import Changeable

CONTROL_PREFIX = "/_embedded/"

router = APIRouter(prefix="/_embedded")


def _directory(request: Request) -> Directory:
    directory: Directory = request.app.state.directory
    return directory


Here = Annotated[Directory, Depends(_directory)]


def build_control(directory: Directory) -> FastAPI:
    """Return the control path as an ASGI application."""
    control = FastAPI(openapi_url=None)
    control.state.directory = directory
    control.include_router(router)
    return control


@router.put("/faults", status_code=204)
async def put_faults(rules: list[Fault], directory: Here) -> None:
    """Put rules in force instead of those before."""
    directory.set_faults(rules)


@router.delete("/faults", status_code=204)
async def delete_faults(directory: Here) -> None:
    """End every fault, sleep included."""
    directory.set_faults([])


@router.get("/calls")
async def calls(directory: Here, kind: Annotated[CallKind | None, Query()] = None) -> Response:
    """Return the journal, in order of arrival."""
    return _array(record.as_json() for record in directory.journal if kind in (None, record.kind))


@router.delete("/calls", status_code=204)
async def delete_calls(directory: Here) -> None:
    """Empty the journal."""
    directory.journal.clear()


@router.get("/hospitals")
async def hospitals(directory: Here, batch_id: Annotated[UUID | None, Query()] = None) -> Response:
    """Return every hospital, or those of one batch; an empty array when there are none."""
    memory = directory.instance.memory
    return _array(hospital.as_json() for hospital in (memory.batch(batch_id) if batch_id else memory.all()))


@router.post("/reset", status_code=204)
async def reset(directory: Here) -> None:
    """Empty memory, windows and journal; settings and faults are those of the start again."""
    directory.reset()


@router.put("/settings", status_code=204)
async def put_settings(changes: dict[str, Any], directory: Here) -> None:
    """Change settings for the calls to come, under their names in small letters."""
    if unknown := changes.keys() - Changeable.model_fields.keys():
        raise HTTPException(422, f"No setting to be changed: {', '.join(sorted(unknown))}")
    try:
        directory.change_settings(changes)
    except ValidationError as error:
        raise HTTPException(422, str(error)) from error


def _array(items: Iterable[dict[str, Any]]) -> Response:
    return JSONResponse(list(items))
