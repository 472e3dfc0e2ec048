"""Run a function, or a block, again when it failed for a reason that passes: decorator and loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from sa_railway.commit.ambiguity import mark_errors
from sa_railway.config.profile import suggest
from sa_railway.exc import ConfigurationError
from sa_railway.recovery.retry_loop import Attempt, RetryLoop, RetryPolicy
from sa_railway.recovery.sessions import check_session, is_asyncio, open_sessions

if TYPE_CHECKING:
    from sa_railway.recovery.sessions import AnySession

P = ParamSpec("P")
R = TypeVar("R")

PRESETS: Mapping[str, RetryPolicy] = {
    # the deadline is below Gunicorn's worker timeout of 30: a client waits for the answer
    "query": RetryPolicy(attempts=3, deadline=20.0, backoff_base=0.5, backoff_cap=5.0),
    # the deadline is that of wait_for_database()
    "startup": RetryPolicy(attempts=5, deadline=120.0, backoff_base=2.0, backoff_cap=32.0),
}


def _find_policy(preset: str, **overrides: Any) -> RetryPolicy:
    """Return the policy of *preset*, with those *overrides* that are not None.

    Raises:
        ConfigurationError: there is no such preset, or a number cannot be used.
    """
    if preset not in PRESETS:
        raise ConfigurationError(
            f"preset is {preset!r}; allowed: {', '.join(PRESETS)}{suggest(preset, PRESETS)}"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(PRESETS[preset], **given)


mark_errors()  # when this is imported, and not when engines are in use


@overload
def retry(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def retry(
    preset: Literal["query", "startup"] = ...,
    /,
    *,
    attempts: int | None = ...,
    deadline: float | None = ...,
    backoff_base: float | None = ...,
    backoff_cap: float | None = ...,
    session: AnySession | None = ...,
) -> Retry: ...


def retry(
    preset: Any = "query",
    /,
    *,
    attempts: int | None = None,
    deadline: float | None = None,
    backoff_base: float | None = None,
    backoff_cap: float | None = None,
    session: AnySession | None = None,
) -> Any:
    """Run work again when it failed for a reason that passes, such as a lost connection.

    As a decorator of functions, methods and coroutine functions, or as a loop around a block::

        @retry
        def report(): ...

        @retry("startup", attempts=10)
        async def load(): ...

        for attempt in retry(session=session):  # `async for` in a coroutine
            with attempt:
                job = session.scalars(select(Job)).first()

    The work begins again each time, so it should be one transaction, or harmless to repeat. It is
    not run again when it may have been committed already: after a lost COMMIT, or a lost statement
    that writes in autocommit mode. ``run_transaction()`` finds out what became of a COMMIT.

    Between two attempts the wait is drawn from the upper half of a time that doubles with each,
    from *backoff_base* up to *backoff_cap*. No wait begins that would end past the deadline.

    Args:
        preset: ``"query"``: 3 attempts, waits of 0.5 s doubling to 5 s, a deadline of 20 s; or
            ``"startup"``: 5 attempts, 2 s doubling to 32 s, 120 s. What else is given replaces
            what the preset says.
        attempts: how many there may be, the first one included.
        deadline: seconds for all attempts and waits. An attempt under way is not interrupted.
        backoff_base: seconds of the first wait, at most.
        backoff_cap: seconds of any wait, at most.
        session: what the work is done in: a Session, a scoped_session, or an asyncio twin. It is
            rolled back when an attempt has failed. If it had begun a transaction before the first
            one, nothing is run again: a rollback would lose what was done in it. None stands for
            those among the arguments of the function, or else, in a Flask application with
            ``Railway(app, db)``, for ``db.session``.

    Returns:
        The decorated function, with its signature; or a ``Retry``, which may be used many times,
        in any thread or task, and in a forked child.

    Raises:
        ConfigurationError: an argument or the function cannot be used.
        Exception: when the work is run, that of the last attempt, with a note on how many there
            were.
    """
    policy = _find_policy(
        preset if isinstance(preset, str) else "query",
        attempts=attempts,
        deadline=deadline,
        backoff_base=backoff_base,
        backoff_cap=backoff_cap,
    )
    again = Retry(policy, session)
    return again if isinstance(preset, str) else again(preset)


class Retry:
    """How to run work again: a decorator and a loop, made by ``retry()``, which documents it."""

    def __init__(self, policy: RetryPolicy, session: AnySession | None) -> None:
        if session is not None:
            check_session(session)
        self._policy = policy
        self._session = session

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return *function*, or coroutine function, with retries."""
        _check_function(function)
        if _is(inspect.iscoroutinefunction, function):
            return cast("Callable[P, R]", self._wrap_async(function))
        self._refuse_asyncio()

        @functools.wraps(function)
        def again(*args: P.args, **kwargs: P.kwargs) -> R:
            run = self._begin(_name(function), *args, *kwargs.values())
            with run.annotate_failure():
                return run.loop()(function, *args, **kwargs)

        return again

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def again(*args: Any, **kwargs: Any) -> Any:
            run = self._begin(_name(function), *args, *kwargs.values())
            with run.annotate_failure():
                return await run.async_loop()(function, *args, **kwargs)

        return again

    def __iter__(self) -> Iterator[Attempt]:
        """Yield the attempts, each to be used as ``with attempt:`` around all of the work."""
        self._refuse_asyncio()
        run = self._begin("a block")
        with run.annotate_failure():
            for attempt in run.loop():
                used = Attempt(attempt)
                yield used
                _check_use(used)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        """Yield the attempts, for ``async for`` and a plain ``with attempt:``."""
        return _AsyncAttempts(self._begin("a block"))

    def _begin(self, name: str, *arguments: object) -> RetryLoop:
        return RetryLoop(name, self._policy, open_sessions(self._session, arguments))

    def _refuse_asyncio(self) -> None:
        if is_asyncio(self._session):
            raise ConfigurationError(
                f"session is of type {type(self._session).__name__}, which only a coroutine "
                "function or an `async for` can roll back; allowed here: a Session or a "
                "scoped_session"
            )


class _AsyncAttempts:
    """The attempts of one ``async for``.

    Not an asynchronous generator, which the loop would have to close later if a ``return`` left it.
    """

    def __init__(self, run: RetryLoop) -> None:
        self._run = run
        self._loop = run.async_loop().__aiter__()
        self._attempt: Attempt | None = None

    def __aiter__(self) -> _AsyncAttempts:
        return self

    async def __anext__(self) -> Attempt:
        if self._attempt is not None:
            _check_use(self._attempt)
        with self._run.annotate_failure():
            self._attempt = Attempt(await self._loop.__anext__())
        return self._attempt


def _check_use(attempt: Attempt) -> None:
    """Refuse to go on without knowing how the attempt went: the loop would never end."""
    if not attempt.is_over:
        raise ConfigurationError(
            "an attempt of retry() was not used; write `with attempt:` around the work"
        )


def _check_function(function: object) -> None:
    """Refuse what could not be run again, or would only be called and not run."""
    kind = type(function).__name__
    if isinstance(function, classmethod | staticmethod):
        raise ConfigurationError(f"function is a {kind}; write @retry below @{kind}")
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"of type {kind}"
        raise ConfigurationError(
            f"function is {what}; allowed: a function, a method or a coroutine function"
        )
    if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
        raise ConfigurationError(
            "function is a generator function: what it has yielded before it failed cannot be "
            "taken back; allowed: a function that returns all of its result"
        )


def _is(test: Callable[[object], bool], function: Callable[..., Any]) -> bool:
    """Apply *test* to a function, or to what makes an object callable."""
    return test(function) or test(type(function).__call__)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
