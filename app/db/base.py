"""What all tables have in common: how their constraints are named, and which column a Python type becomes."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Double, LargeBinary, MetaData, Numeric, Text
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.orm import DeclarativeBase

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        UUID: PgUuid(as_uuid=True),
        datetime: DateTime(timezone=True),
        str: Text,
        int: BigInteger,
        float: Double,
        bool: Boolean,
        Decimal: Numeric,
        bytes: LargeBinary,
        dict[str, Any]: JSON,
    }
