"""Fixtures of several unit tests."""

import socket

import pytest


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    # only so that a broken watchdog fails the test instead of blocking it
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs
