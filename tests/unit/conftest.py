"""Fixtures of several unit tests."""

import socket

import pytest

import sa_railway


@pytest.fixture
def engine(tmp_path):
    """An engine that counts, and whose probes are answered from memory, on an empty database."""
    engine = sa_railway.create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}", probe_cache=3600.0, metrics=True
    )
    yield engine
    engine.dispose()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    # only so that a broken watchdog fails the test instead of blocking it
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs
