"""What psycopg's pipeline raises, in whatever order the answers come."""

import asyncio
from contextlib import asynccontextmanager, contextmanager, nullcontext

import pytest

from sa_railway.commit import wire


class RefusedError(Exception):
    """What the server says to the first statement."""


class AbortedError(Exception):
    """What the driver says of those that the server has skipped."""


class Cursor:
    """The answer to the first statement comes while the second is sent, or with the end."""

    def __init__(self, *, is_early):
        self.is_early = is_early
        self.sent = []

    def execute(self, statement, *, prepare):
        self.sent.append(statement)
        if self.is_early and len(self.sent) == 2:
            raise RefusedError


class AsyncCursor(Cursor):
    async def execute(self, statement, *, prepare):
        super().execute(statement, prepare=prepare)


class Driver:
    def __init__(self, *, is_early):
        self.is_early = is_early

    def end(self):
        aborted = AbortedError()
        aborted.__context__ = None if self.is_early else RefusedError()
        raise aborted from None

    @contextmanager
    def pipeline(self):
        yield
        self.end()


class AsyncDriver(Driver):
    @asynccontextmanager
    async def pipeline(self):  # type: ignore[override]
        yield
        self.end()


def pipe(*, is_async, is_early):
    statements = ("SAVEPOINT", "INSERT")
    if is_async:
        asyncio.run(wire._pipe_async(AsyncDriver(is_early=is_early), statements))
    else:
        wire._pipe(Driver(is_early=is_early), statements)


@pytest.mark.parametrize("is_early", [False, True], ids=["with the end", "before the end"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
def test_the_first_refusal_is_the_context_of_what_a_pipeline_raises(
    monkeypatch, is_early, is_async
):
    cursor = (AsyncCursor if is_async else Cursor)(is_early=is_early)
    monkeypatch.setattr(wire, "unseen_cursor", lambda driver: nullcontext(cursor))

    with pytest.raises(AbortedError) as caught:
        pipe(is_async=is_async, is_early=is_early)

    assert isinstance(caught.value.__context__, RefusedError)
    assert cursor.sent == ["SAVEPOINT", "INSERT"]
