"""Settings, read from environment variables that begin with ``EMBEDDED_DIRECTORY_``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from embedded_directory.faults import Fault, Seconds
from embedded_directory.limits import Limit

PREFIX = "EMBEDDED_DIRECTORY_"


class SettingsError(Exception):
    """A setting is wrong; the text says which, and what is allowed."""


def _limit(value: object) -> Limit | None:
    """Turn ``COUNT/SECONDS`` into a limit, empty or None into none."""
    if value is None or value == "":
        return None
    return value if isinstance(value, Limit) else Limit.parse(str(value))


def _faults(value: object) -> object:
    """Turn JSON text, as an environment variable has it, into what it says."""
    if isinstance(value, str):
        return json.loads(value or "[]")
    return value


LimitText = Annotated[
    Limit | None,
    BeforeValidator(_limit),
    PlainSerializer(lambda limit: f"{limit.count}/{limit.seconds:g}" if limit else ""),
]
Count = Annotated[int, Field(ge=0)]


class Changeable(BaseModel):
    """What may also be changed while the directory runs. The defaults are the deployed directory's, measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    create_seconds: Seconds = Field(5, description="seconds, from 0 to 86400")
    read_seconds: Seconds = Field(0, description="seconds, from 0 to 86400")
    create_limit: LimitText = Field(Limit(30, 60), description="COUNT/SECONDS, such as 30/60, or empty for none")
    other_limit: LimitText = Field(Limit(50, 60), description="COUNT/SECONDS, such as 50/60, or empty for none")
    root_limit: LimitText = Field(Limit(100, 60), description="COUNT/SECONDS, such as 100/60, or empty for none")
    batch_size: Count = Field(20, description="a whole number from 0, which means no cap")
    threads: Count = Field(40, description="a whole number from 0, which means no bound")
    max_hospitals: int = Field(10_000, ge=1, description="a whole number from 1")
    keep_alive_seconds: Seconds = Field(5, description="seconds, from 0 to 86400")


class Settings(Changeable):
    """Every setting; each is an environment variable with the same name in capitals after the prefix."""

    host: str = Field("127.0.0.1", min_length=1, description="an address or host name to listen on")
    port: int = Field(9000, ge=0, le=65_535, description="a port from 0 to 65535, where 0 picks a free one")
    faults: Annotated[list[Fault], BeforeValidator(_faults)] = Field([], description="a JSON array of fault rules")
    seed: int | None = Field(None, description="a whole number")


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings; raise SettingsError with a sentence for each that is wrong or unknown."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(given, dict(problem)) for problem in error.errors())) from error


def _sentence(given: Mapping[str, str], problem: Mapping[str, Any]) -> str:
    """Say what is wrong with one setting."""
    name = str(problem["loc"][0])
    variable = PREFIX + name.upper()
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{variable} is no setting; there are {', '.join(PREFIX + n.upper() for n in Settings.model_fields)}."
    where = "".join(f"{part}: " for part in problem["loc"][1:])
    return f"{variable} must be {field.description}, not {given[name]!r} ({where}{problem['msg']})."
