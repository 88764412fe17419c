"""
The cookie challenge of a TCP connection.

A TCP port is open to every user of the host and perhaps to other hosts, so before a
frame is decoded both ends prove that they hold the same key, the *cookie*: 32 bytes in
a file that only its user can read.  The exchange, with C the connecting side:

    C, S   hello: magic, version, 32 random bytes (both at once)
    C      HMAC-SHA256(key, 'client' label + C's nonce + S's nonce + ends)
    S      HMAC-SHA256(key, 'server' label + S's nonce + C's nonce + ends)

Nonces are fresh, so nothing can be replayed; the labels differ, so an answer that is
sent back proves nothing; the server speaks second, so that a stranger gets no answer
out of it.  The ends are C's address and S's, as each side's own socket has them: who
listens where C dials and passes everything on to an actor has two connections with
other ends, and ends up with none that is authenticated.  An honest forwarder, a NAT or
a tunnel, fails alike, unless both sides are told of it by `TRACTOR_TCP_FORWARDED`.

This keeps out whoever can only open connections and listen.  It does not keep out who
can read or alter the packets on their way, since nothing is encrypted and no later byte
is authenticated; nor who is present twice where the same addresses exist twice, as the
loopback ones do on two hosts, or network namespaces, that share the cookie.

`CookieExchange` is the rule and does no I/O, `authenticate()` drives it over a byte
stream, `load_cookie()` owns the file.  Used by `_tcp` only: a Unix socket knows its
peer's user from the kernel.
"""

from __future__ import annotations

import hmac
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

from tractor._exceptions import RuntimeFailure
from tractor.runtime import _state

Role = Literal['client', 'server']

MAGIC: Final = b'tractor\x00'
VERSION: Final = b'\x02'
NONCE_SIZE: Final = 32  # bytes
HELLO_SIZE: Final = len(MAGIC) + len(VERSION) + NONCE_SIZE
MAC_SIZE: Final = 32  # bytes

_KEY_SIZE: Final = 32  # bytes; written as twice as many hex digits
_MAX_FILE_SIZE: Final = 1024  # bytes
_MAPPED: Final = bytes(10) + b'\xff\xff'  # what makes an IPv4 address an IPv6 one
_LABELS: Final[dict[Role, bytes]] = {
    'client': b'tractor-auth-client\x00',
    'server': b'tractor-auth-server\x00',
}

# The keys read so far: a file that changes under a running program has no effect.
_cookies: dict[Path, bytes] = {}


class AuthError(Exception):
    """The peer did not prove that it holds our cookie."""


def ends_of(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """
    Return the two ends of a connection in the form that both sides agree on.

    An IPv4 address is the same in its IPv6 form; the scope of an IPv6 address is left
    out, since each host has names of its own for it.

    Args:
        client: `(host, port)` of the connecting side; the host is an IP literal.
        server: The same of the other side.
    """
    return b''.join(_packed(host, port) for host, port in (client, server))


def _packed(host: str, port: int) -> bytes:
    literal, _, _ = host.partition('%')
    if ':' in literal:
        packed = socket.inet_pton(socket.AF_INET6, literal)
    else:
        packed = _MAPPED + socket.inet_pton(socket.AF_INET, literal)
    return packed + port.to_bytes(2, 'big')


class CookieExchange:
    """
    One side of one exchange: what to send, and whether the answer proves anything.

    Args:
        key: The cookie.
        role: `'client'` for the connecting side.
        ends: See `ends_of()`; empty leaves open between whom the exchange is.
    """

    __slots__ = ('_ends', '_key', '_nonce', '_peer_nonce', 'role')

    def __init__(self, key: bytes, role: Role, ends: bytes) -> None:
        self._key, self.role, self._ends = key, role, ends
        self._nonce = os.urandom(NONCE_SIZE)
        self._peer_nonce = b''

    @property
    def hello(self) -> bytes:
        """What this side sends first."""
        return MAGIC + VERSION + self._nonce

    def receive_hello(self, hello: bytes) -> None:
        """
        Take the peer's first `HELLO_SIZE` bytes.

        Raises:
            AuthError: The peer speaks another protocol or another version of it.
        """
        if not hello.startswith(MAGIC):
            raise AuthError('it speaks another protocol')
        version = hello[len(MAGIC) : len(MAGIC) + len(VERSION)]
        if version != VERSION:
            raise AuthError(
                f'it speaks version {version[0]} of the exchange, we {VERSION[0]}'
            )
        self._peer_nonce = hello[len(MAGIC) + len(VERSION) :]

    @property
    def answer(self) -> bytes:
        """This side's proof; the peer's hello must have been received."""
        return self._mac(self.role, self._nonce, self._peer_nonce)

    def verify(self, answer: bytes) -> None:
        """
        Check the peer's proof.

        Raises:
            AuthError: It is none.
        """
        role: Role = 'server' if self.role == 'client' else 'client'
        expected = self._mac(role, self._peer_nonce, self._nonce)
        if not hmac.compare_digest(expected, answer):
            raise AuthError(
                'it holds another cookie, or somebody in between forwards the '
                'connection (if you do: set TRACTOR_TCP_FORWARDED=1 for both ends)'
            )

    def _mac(self, role: Role, own: bytes, other: bytes) -> bytes:
        text = _LABELS[role] + own + other + self._ends
        return hmac.digest(self._key, text, 'sha256')


async def authenticate(
    role: Role,
    key: bytes,
    ends: bytes,
    send: Callable[[bytes], Awaitable[None]],
    receive_exactly: Callable[[int], Awaitable[bytes]],
) -> None:
    """
    Run the exchange over a connection.

    Reads not a byte more than the exchange has.  If cancelled or failed the connection
    is of no use any more and must be closed.

    Args:
        role: `'client'` for the connecting side.
        key: The cookie.
        ends: As `CookieExchange` takes them.
        send: Writes all of its argument.
        receive_exactly: Returns that many bytes, fewer only at the end of the stream.
    Raises:
        AuthError: The peer left or proved nothing.
    """

    async def receive(size: int, what: str) -> bytes:
        data = await receive_exactly(size)
        if len(data) < size:
            raise AuthError(f'it hung up instead of {what}')
        return data

    exchange = CookieExchange(key, role, ends)
    await send(exchange.hello)
    exchange.receive_hello(await receive(HELLO_SIZE, 'greeting us'))
    if role == 'client':
        await send(exchange.answer)
        exchange.verify(await receive(MAC_SIZE, 'proving that it holds our cookie'))
    else:
        exchange.verify(await receive(MAC_SIZE, 'proving that it holds our cookie'))
        await send(exchange.answer)


def cookie_path() -> Path:
    """
    Return where the cookie is: `TRACTOR_COOKIE_FILE` or in the data directory.

    Raises:
        RuntimeFailure: The variable names a relative path.
    """
    path = _state.env_cookie_file()
    if path is not None:
        if not path.is_absolute():
            # It would name another file in each actor that changes its directory.
            raise RuntimeFailure(
                f'TRACTOR_COOKIE_FILE={str(path)!r} is a relative path; '
                f'set it to an absolute one, such as {str(path.absolute())!r}'
            )
        return path
    # By hand, since every child needs it and platformdirs takes 3 ms to import.
    if sys.platform == 'darwin':
        base = Path('~/Library/Application Support').expanduser()
    else:
        base = Path(os.environ.get('XDG_DATA_HOME', ''))
        if not base.is_absolute():  # as the XDG specification demands
            base = Path('~/.local/share').expanduser()
    return base / 'tractor' / 'cookie'


def load_cookie() -> bytes:
    """
    Return this user's key; make the file if there is none.

    Programs that race to make it agree on one key.  A file once read is not read again.

    Raises:
        RuntimeFailure: The file cannot be made or read, is open to others, belongs to
            somebody else, is a symlink, holds no key, or is named by a relative path.
    """
    path = cookie_path()
    key = _cookies.get(path)
    if key is None:
        try:
            data = _read(path)
            if data is None:
                _create(path)
                data = _read(path)
        except OSError as err:
            raise RuntimeFailure(
                f'cannot make or read the cookie file {str(path)!r}, which TCP '
                f'connections need: {err.strerror}; set TRACTOR_COOKIE_FILE to a path '
                'that works'
            ) from err
        key = _cookies[path] = _parse(path, data)
    return key


def _read(path: Path) -> bytes | None:
    """Return the file's contents, `None` if there is none; refuse an unsafe one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        if path.is_symlink():
            raise _unsafe(path, 'it is a symlink') from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _unsafe(path, 'it is no regular file')
        if found.st_uid != os.getuid():
            raise _unsafe(path, f'it belongs to uid {found.st_uid}')
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise _unsafe(path, f'others may use it (mode {mode:04o}, not 0600)')
        return os.read(fd, _MAX_FILE_SIZE)
    finally:
        os.close(fd)


def _unsafe(path: Path, why: str) -> RuntimeFailure:
    return RuntimeFailure(
        f'unsafe cookie file {str(path)!r}: {why}; remove it, and the next program '
        'makes a new one, or set TRACTOR_COOKIE_FILE to another path'
    )


def _create(path: Path) -> None:
    """Put a new key at `path`, complete from the first moment, unless one is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f'{path.name}.{os.getpid()}.{os.urandom(4).hex()}')
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(fd, 0o600)  # whatever the umask is
            os.write(fd, os.urandom(_KEY_SIZE).hex().encode() + b'\n')
        finally:
            os.close(fd)
        try:
            os.link(draft, path)  # unlike a rename it never replaces another's key
        except FileExistsError:
            return
    finally:
        os.unlink(draft)


def _parse(path: Path, data: bytes | None) -> bytes:
    try:
        key = bytes.fromhex((data or b'').decode('ascii'))
    except ValueError:
        key = b''
    if len(key) != _KEY_SIZE:
        raise RuntimeFailure(
            f'cookie file {str(path)!r} does not hold {2 * _KEY_SIZE} hex digits; '
            'remove it, and the next program makes a new one'
        )
    return key
