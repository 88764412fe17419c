"""
A server in another process, and a well-behaved peer that uses it all the while.

Every attack is held to the same promise: the peer's calls go on without a failure, and
afterwards the server holds what it held before.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._testing import repodir
from tractor.ipc import Channel, _uds
from tractor.msg.types import Aid

HERE: Final = Path(__file__).parent
DEADLINE: Final = 20.0  # seconds for one attack and what belongs to it
BOOT: Final = 20.0  # seconds for the server to come up
SETTLE: Final = 3.0  # seconds for the server to clear up
SLOWEST: Final = 2.0  # seconds that a well-behaved call may take
MORE_CALLS: Final = 20  # that must succeed once the attack is over
MEMORY_SLACK: Final = 8 * 2**20  # bytes
NOBODY: Final = 65534

Address = tuple[str, int] | tuple[str, str]


class Server:
    """
    The program `server_program.py` while it runs.

    Attributes:
        addr: Where it listens, plain.
        base: Directory with its cookie, its sockets below `run` and its log.
        transport: `'tcp'` or `'uds'`.
    """

    def __init__(self, base: Path, transport: str, handshake_timeout: float) -> None:
        self.base, self.transport = base, transport
        with (base / 'log').open('w') as log:
            self.proc = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / 'server_program.py'),
                    transport,
                    str(handshake_timeout),
                ],
                env={**os.environ, 'PYTHONPATH': str(repodir())},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                umask=0,
            )
        assert self.proc.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.proc.stdout, selectors.EVENT_READ)
            assert selector.select(BOOT), self.log
        line = self.proc.stdout.readline()
        assert line, self.log
        first, second = json.loads(line)
        self.addr: Address = (first, second)

    @property
    def log(self) -> str:
        """What it said on its standard error."""
        return (self.base / 'log').read_text(errors='replace')

    @property
    def cookie(self) -> Path:
        """The file with the key of its TCP connections."""
        return self.base / 'cookie'

    def stop(self) -> None:
        """End it in order; that this works is part of every test."""
        assert self.proc.stdin is not None
        assert self.proc.stdout is not None
        try:
            self.proc.stdin.close()
            assert self.proc.wait(timeout=BOOT) == 0, self.log
        finally:
            self.proc.kill()
            self.proc.wait()
            self.proc.stdout.close()

    async def dial(self) -> trio.SocketStream:
        """Connect and say nothing."""
        if self.transport == 'tcp':
            return await trio.open_tcp_stream(*self.addr)
        # Which waits while the queue of connections is full; trio's own does not.
        return await _uds._connect('/'.join(map(str, self.addr)))

    async def introduce(self, name: str = 'stranger') -> Channel:
        """Connect and shake hands, as a process of ours that is no actor."""
        chan = await Channel.from_addr(self.addr)
        await chan._do_handshake(
            Aid(name=name, uuid=str(uuid.uuid4()), pid=os.getpid())
        )
        return chan

    async def knock(self, uid: int = 0, cookie: Path | None = None) -> Any:
        """Return the error that another process gets which tries to become a peer."""
        result = await trio.run_process(
            [
                sys.executable,
                str(HERE / 'stranger_program.py'),
                json.dumps(self.addr),
                str(uid),
            ],
            env={
                **os.environ,
                'PYTHONPATH': str(repodir()),
                'TRACTOR_COOKIE_FILE': str(cookie or self.cookie),
            },
            capture_stdout=True,
        )
        return json.loads(result.stdout)

    async def wait_until_hung_up(self, stream: trio.SocketStream) -> None:
        """Read until the server closes a connection, and close our end."""
        async with stream:
            try:
                while await stream.receive_some(4096):
                    continue
            except trio.BrokenResourceError:
                return


class Friend:
    """
    A peer that calls the server without a pause.

    Attributes:
        calls: How many calls have succeeded.
        slowest: Seconds that the slowest of them took.
    """

    def __init__(self, portal: Any) -> None:
        self.portal = portal
        self.calls, self.slowest = 0, 0.0
        self._called = trio.Event()

    async def call_forever(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Call until cancelled; any failure is the test's."""
        while True:
            since = trio.current_time()
            number = self.calls
            assert await self.run('ping', value=number) == number
            self.slowest = max(self.slowest, trio.current_time() - since)
            self.calls += 1
            self._called.set()
            self._called = trio.Event()
            if self.calls == 1:
                task_status.started()

    async def run(self, name: str, **kwargs: Any) -> Any:
        """Call one function of the server."""
        return await self.portal.run_from_ns('server_program', name, **kwargs)

    async def go_on(self, calls: int = MORE_CALLS) -> None:
        """Wait until so many more calls have succeeded."""
        goal = self.calls + calls
        while self.calls < goal:
            await self._called.wait()

    async def footprint(self) -> dict[str, int]:
        """Ask the server what it holds."""
        found: dict[str, int] = await self.run('footprint')
        return found

    async def check_footprint(self, before: dict[str, int]) -> None:
        """Wait until the server has cleared up, and compare."""
        with trio.move_on_after(SETTLE):
            while grown(before, await self.footprint()):
                await self.go_on()
        after = await self.footprint()
        assert not grown(before, after), f'before {before}, after {after}'


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Return the names of what the server holds more of than it did."""
    slack = {'memory': MEMORY_SLACK}
    # Idle worker threads of trio come and go.
    return [
        name
        for name, value in before.items()
        if name != 'threads' and after[name] > value + slack.get(name, 0)
    ]


Attack = Callable[[Server, Friend], Awaitable[Any]]


@pytest.fixture
def start_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """A function that starts a server; this process then shares its directories."""
    servers = []
    with tempfile.TemporaryDirectory(prefix='server-') as folder:
        base = Path(folder)
        (base / 'run').mkdir(mode=0o700)
        monkeypatch.setenv('XDG_RUNTIME_DIR', f'{base}/run')
        monkeypatch.setenv('TRACTOR_COOKIE_FILE', f'{base}/cookie')

        def start(transport: str, handshake_timeout: float = 10.0) -> Server:
            servers.append(Server(base, transport, handshake_timeout))
            return servers[-1]

        yield start
        for server in servers:
            server.stop()


@pytest.fixture
def endure() -> Callable[[Server, Attack], None]:
    """A function that attacks a server and holds it to the promise."""

    def check(server: Server, attack: Attack) -> None:
        trio.run(_endure, server, attack)

    return check


async def _endure(server: Server, attack: Attack) -> None:
    with trio.fail_after(DEADLINE):
        async with (
            tractor.open_root_actor(
                name='friend',
                registry_addrs=[server.addr],
                enable_transports=[server.transport],
            ),
            tractor.get_registry(server.addr) as portal,
            trio.open_nursery() as tn,
        ):
            friend = Friend(portal)
            await tn.start(friend.call_forever)
            before = await friend.footprint()
            await attack(server, friend)
            await friend.go_on()
            await friend.check_footprint(before)
            assert friend.slowest < SLOWEST
            tn.cancel_scope.cancel()
