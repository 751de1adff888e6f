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
    text,
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


class BatchId(TypeDecorator[str]):
    """A batch's id. No id has a NUL, which PostgreSQL would refuse even to look for."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The id as it can be looked for."""
        return None if value is None else value.replace("\0", "\ufffd")


metadata = MetaData()

version_table = Table("schema_version", metadata, Column("version", Integer, nullable=False))

batch_table = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of their making
    Column("batch_id", BatchId, nullable=False, unique=True),
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
    # Counts the runs, where several processes may take a batch up.
    Column("epoch", Integer, nullable=False, server_default=text("0")),
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


# The creates of the last window, where several processes share one limit.
create_table = Table(
    "recent_creates",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("sent_at", Float(53), nullable=False, index=True),  # in seconds since 1970, by the database's clock
)


class NewerSchemaError(Exception):
    """The database was made by a newer version of this service; `version` is its schema's."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def _add_epoch(connection: Connection) -> None:
    metadata.create_all(connection)
    if "epoch" not in {column["name"] for column in inspect(connection).get_columns(batch_table.name)}:
        connection.execute(text("ALTER TABLE batches ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0"))


# Upgrade number n, counted from 1, makes version n of version n - 1; a new database goes through all of them.
_UPGRADES: tuple[Callable[[Connection], None], ...] = (metadata.create_all, _add_epoch)


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
