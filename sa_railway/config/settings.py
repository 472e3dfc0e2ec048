"""What ``engine_options()`` and the factories of engines take by name, for a type checker.

At run time the dialect of another package may take more: ``engine_options()`` asks the dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypedDict

from sqlalchemy.pool import Pool

ProfileName = Literal["web", "worker", "script", "serverless"]
"""The name of a profile."""


class Fields(TypedDict, total=False):
    """Those of a ``Profile``."""

    name: str
    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_recycle: float
    recycle_jitter: float
    idle_release: float | None
    metrics: bool
    leak_after: float | None
    pre_ping: bool
    trust_idle: float
    ping_timeout: float
    connect_timeout: float
    connect_patience: float
    backoff_base: float
    backoff_cap: float
    breaker_pause: float
    keepalives: bool
    keepalives_idle: int
    keepalives_interval: int
    keepalives_count: int
    tcp_user_timeout: float
    application_name: str | None
    transaction_pooler: bool
    resolve_commit: bool
    resolve_timeout: float
    commit_marker: bool
    probe_timeout: float
    probe_cache: float
    health_window: float
    health_success_rate: float
    health_reconnections: int
    health_rollbacks: int
    health_connections_warn: float
    health_connections_critical: float
    health_idle_in_transaction: float
    fault_kinds: Mapping[str, str]


class EngineArguments(TypedDict, total=False):
    """The arguments of ``create_engine()`` and ``create_async_engine()`` that are no such field."""

    async_creator: Callable[..., Any]
    connect_args: Mapping[str, Any] | None
    creator: Callable[..., Any]
    echo: bool | Literal["debug"] | None
    echo_pool: bool | Literal["debug"] | None
    enable_from_linting: bool
    execution_options: Mapping[str, Any]
    future: Literal[True]
    hide_parameters: bool
    logging_name: str
    module: ModuleType
    plugins: str | Sequence[str]
    pool: Pool | None
    poolclass: type[Pool] | None
    pool_events: Any
    pool_logging_name: str
    pool_pre_ping: bool
    pool_reset_on_return: bool | Literal["rollback", "commit"] | None
    pool_use_lifo: bool
    query_cache_size: int


class DialectArguments(TypedDict, total=False):
    """Those of SQLAlchemy's dialects for PostgreSQL, SQLite and MySQL."""

    client_encoding: str
    compiler_linting: Any
    executemany_batch_page_size: int
    executemany_mode: Literal["values_only", "values_plus_batch"]
    implicit_returning: bool
    insertmanyvalues_page_size: int
    is_mariadb: bool
    isolation_level: str
    json_deserializer: Callable[[str], Any]
    json_serializer: Callable[[Any], str]
    label_length: int | None
    max_identifier_length: int | None
    native_datetime: bool
    native_inet_types: bool | None
    paramstyle: Literal["qmark", "numeric", "named", "format", "pyformat", "numeric_dollar"]
    server_side_cursors: bool
    skip_autocommit_rollback: bool
    supports_native_boolean: bool | None
    use_insertmanyvalues: bool
    use_native_hstore: bool


class Settings(Fields, EngineArguments, DialectArguments, total=False):
    """All of them."""
