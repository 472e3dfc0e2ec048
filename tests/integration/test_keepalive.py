"""TCP options of asyncpg's connections, which have none by themselves."""

import asyncio
import socket
from typing import Any

import asyncpg

import sa_railway

OPTIONS = {
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
}


def options_of(url, **arguments):
    async def main():
        engine = sa_railway.create_async_engine(url, **arguments)
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            peer = driver._transport.get_extra_info("socket")
            is_alive = bool(peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            found = {name: peer.getsockopt(*option) for name, option in OPTIONS.items()}
        await engine.dispose()
        return is_alive, found

    return asyncio.run(main())


def test_they_are_those_of_the_profile(postgres):
    assert options_of(postgres.url_for("asyncpg")) == (
        True,
        {"idle": 20, "interval": 10, "count": 5, "user_timeout": 15000},
    )
    given = {"keepalives_idle": 7, "keepalives_interval": 3, "keepalives_count": 2}
    assert options_of(postgres.url_for("asyncpg"), tcp_user_timeout=1.5, **given) == (
        True,
        {"idle": 7, "interval": 3, "count": 2, "user_timeout": 1500},
    )


def test_what_the_profile_turns_off_is_left_to_the_system(postgres):
    is_alive, found = options_of(postgres.url_for("asyncpg"), keepalives=False, tcp_user_timeout=0)

    assert not is_alive
    assert found["user_timeout"] == 0


def test_a_connection_that_the_application_makes_is_its_own(postgres):
    url = postgres.url

    async def creator():
        return await asyncpg.connect(
            host=url.host, port=url.port, user=url.username, database=url.database
        )

    is_alive, _ = options_of("postgresql+asyncpg://", async_creator=creator)
    assert not is_alive
