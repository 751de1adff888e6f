"""The tables of the database, and how one of an earlier version is brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    insert,
    inspect,
    select,
    update,
)


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC, kept as seconds since 1970: SQLite has no type for times."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> float | None:
        """The seconds of a time."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, dialect: Dialect) -> datetime | None:
        """The time of so many seconds."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


metadata = MetaData()

version_table = Table("schema_version", metadata, Column("version", Integer, nullable=False))

batch_table = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of their making
    Column("batch_id", String, nullable=False, unique=True),
    Column("filename", String, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("goal", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("completed_at", UtcTime),
    Column("batch_activated", Boolean, nullable=False),
    Column("error_message", String),
    Column("waiting_for", String),
    Column("run_started_at", UtcTime),
    Column("expected_end", UtcTime),
    Column("earlier_seconds", Float(53), nullable=False),
    Column("rows_digest", String, nullable=False, index=True),
    Column("key_owner", String),
    Column("idempotency_key", String),
    Column("upload_digest", String),
    UniqueConstraint("key_owner", "idempotency_key"),
)

row_table = Table(
    "rows",
    metadata,
    Column("batch_id", ForeignKey("batches.batch_id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("address", String, nullable=False),
    Column("phone", String),
    Column("status", String, nullable=False),
    Column("hospital_id", BigInteger),
    Column("error_message", String),
)


class NewerSchemaError(Exception):
    """The database was made by a newer version of this service; `version` is its schema's."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


# Upgrade number n, counted from 1, makes version n of version n - 1; a new database goes through all of them.
_UPGRADES: tuple[Callable[[Connection], None], ...] = (metadata.create_all,)


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables, or change them to those of this version. Raises `NewerSchemaError`."""
    known = inspect(connection).has_table(version_table.name)
    version = connection.scalar(select(version_table.c.version)) or 0 if known else 0
    if version > len(_UPGRADES):
        raise NewerSchemaError(version)
    for upgrade in _UPGRADES[version:]:
        upgrade(connection)
    if version == 0:
        connection.execute(insert(version_table).values(version=len(_UPGRADES)))
    elif version < len(_UPGRADES):
        connection.execute(update(version_table).values(version=len(_UPGRADES)))
