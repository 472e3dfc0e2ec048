"""Fixtures for pytest, which finds them by the entry point ``pytest11``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL

from sa_railway.testing.postgres import TemporaryPostgres
from sa_railway.testing.proxy import ChaosProxy


@pytest.fixture(scope="session")
def temporary_postgres() -> Iterator[TemporaryPostgres]:
    """A PostgreSQL server for the whole session, and for nothing else."""
    with TemporaryPostgres() as server:
        yield server


@pytest.fixture
def chaos_proxy() -> Iterator[Callable[[str | URL | tuple[str, int]], ChaosProxy]]:
    """A function that puts a proxy in front of a server; they are closed after the test."""
    with contextlib.ExitStack() as proxies:
        yield lambda upstream: proxies.enter_context(ChaosProxy(upstream))
