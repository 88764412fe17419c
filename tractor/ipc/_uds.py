"""
Unix sockets: their addresses, listeners and message stream.

A socket is a file in an owner-only directory, itself of mode 0600, and each side
refuses a peer of another user.  Only the listener has a name, so both ends of a
connection report the listener's path and tell each other apart by process id.  Bind and
clean-up are serialized between processes by a lock on the directory: the file which a
dead process left is replaced, that of a live one never.  Whoever can read a directory
can lock it, so nobody waits long for that.  Importable everywhere; of use where
`HAS_UDS`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EADDRINUSE
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from weakref import WeakKeyDictionary

import trio

from tractor.ipc._transport import MsgpackTransport
from tractor.log import get_logger
from tractor.msg._codec import MsgCodec
from tractor.msg.pretty_struct import Struct
from tractor.runtime import _state

log = get_logger()

HAS_UDS: Final[bool] = sys.platform != 'win32' and hasattr(trio.socket, 'AF_UNIX')

# Bytes of a path, its terminating NUL included; tests patch it.
_SUN_PATH_LIMIT: int = 108 if sys.platform == 'linux' else 104

REGISTRY_NAME: Final = 'registry@1616.sock'
BACKLOG: Final = 128
_DIGEST_SIZE: Final = 16  # bytes, shown as hex

# Seconds between attempts to connect to a listener whose backlog is full, or to lock.
_FIRST_RETRY: Final = 0.001
_LAST_RETRY: Final = 0.05

# Others hold the lock for microseconds, unless they mean harm.
LOCK_TIMEOUT: Final = 2.0  # seconds
_LOCK_TRIES: Final = 10  # where nothing can be awaited; `_FIRST_RETRY` apart

# Device and inode of the file of each listener that has not been closed here.
_bound_files: Final[WeakKeyDictionary[trio.SocketListener, tuple[int, int]]] = (
    WeakKeyDictionary()
)

# macOS, from <sys/un.h>: level, peer's credentials, peer's pid.
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_LOCAL_PEERPID: Final = 2
_XUCRED_SIZE: Final = 76  # bytes


class _RuntimeDir:
    """A class attribute that is computed when looked at, so that importing is cheap."""

    def __get__(self, instance: object, owner: type | None = None) -> Path:
        return _state.get_rt_dir()


class UDSAddress(Struct, frozen=True):  # type: ignore[misc]
    """
    A directory, a file name, and the process at that end where it is known.

    A `filedir` of `None` means `def_bindspace`.
    """

    filedir: str | Path | None
    filename: str | Path
    maybe_pid: int | None = None

    proto_key: ClassVar[str] = 'uds'
    unwrapped_type: ClassVar[Any] = tuple[str, str]
    def_bindspace: ClassVar[Any] = _RuntimeDir()

    def __post_init__(self) -> None:
        for part in (self.filedir, self.filename):
            if part is None:
                continue
            try:
                unusable = b'\0' in os.fsencode(part)
            except UnicodeEncodeError:
                unusable = True
            if unusable:
                raise ValueError(f'{str(part)!r} can be no part of a file system path')

    @classmethod
    def from_addr(cls, addr: Sequence[Any] | str | Path) -> Self:
        """
        Return the address for `(directory, file name)` or for one path.

        Raises:
            TypeError: Anything else.
            ValueError: A part that no path can have, such as a NUL.
        """
        match addr:
            case str() | Path():
                path = Path(addr)
                return cls(path.parent, Path(path.name))
            case ((str() | Path()) as filedir, (str() | Path()) as filename):
                return cls(Path(filedir), Path(filename))
        raise TypeError(
            f'a UDS address is `(directory, file name)` or a path, not {addr!r}'
        )

    @classmethod
    def get_random(
        cls, bindspace: str | Path | None = None, current_actor: Any = None
    ) -> Self:
        """
        Return an address that no other live process has.

        Args:
            bindspace: The directory; `None` means `def_bindspace`.
            current_actor: Names the file; `None` means this process's actor, if any.
        """
        actor = current_actor or _state.current_actor(err_on_no_runtime=False)
        filedir = Path(bindspace or cls.def_bindspace)
        pid = os.getpid()
        if actor is not None:
            name = _state.socket_owner(actor.aid.name)
        else:
            kind = 'root' if _state.is_root_process() else 'actor'
            name = f'no_runtime_{kind}.{os.urandom(4).hex()}'
        return cls(filedir, cls.get_sockname(name, pid, filedir), pid)

    @classmethod
    def get_root(cls) -> Self:
        """Return the default registry address."""
        return cls(cls.def_bindspace, Path(REGISTRY_NAME))

    @staticmethod
    def get_sockname(name: str, pid: int, bindspace: str | Path) -> Path:
        """
        Return the name of the socket file of an actor, a single path component.

        A name that cannot be one, or that makes the path too long, is replaced by its
        digest, so everybody who knows the name arrives at the same file.

        Args:
            name: The actor's.
            pid: The actor's.
            bindspace: The directory the file is for.
        Raises:
            ValueError: The directory alone is too long for any name.
        """
        unsafe = (
            '\0' in name
            or '/' in name
            or bool(os.altsep and os.altsep in name)
            or Path(name).is_absolute()
        )
        plain = f'{name}@{pid}.sock'
        over_budget = not _fits(bindspace, plain)
        if not unsafe and not over_budget:
            return Path(plain)
        digest = hashlib.blake2b(
            name.encode('utf-8', 'surrogatepass'), digest_size=_DIGEST_SIZE
        ).hexdigest()
        compact = f'actor.{digest}@{pid}.sock'
        if _fits(bindspace, compact):
            return Path(compact)
        raise ValueError(
            f'socket directory {str(bindspace)!r} leaves no room for a socket name; '
            f'name was unsafe: {unsafe}, name was over budget: {over_budget}, '
            f'AF_UNIX path limit: {_SUN_PATH_LIMIT}'
        )

    def unwrap(self) -> tuple[str, str]:
        """Return `(directory, file name)`."""
        return str(self.bindspace), str(self.filename)

    @property
    def bindspace(self) -> Path:
        """The directory."""
        return Path(self.filedir or self.def_bindspace)

    @property
    def sockpath(self) -> Path:
        """The socket file."""
        return self.bindspace / self.filename

    @property
    def is_valid(self) -> bool:
        """Whether the file is below the directory."""
        return self.bindspace in self.sockpath.parents

    @property
    def system_chooses(self) -> bool:
        """Never, unlike a port: the name is known before it is bound."""
        return False

    def __repr__(self) -> str:
        pid = '<unknown-pid>' if self.maybe_pid is None else self.maybe_pid
        filedir = '<runtime-dir>' if self.filedir is None else self.filedir
        return f'{type(self).__name__}[({filedir}/, {self.filename}, {pid})]'

    __str__ = __repr__


def _fits(bindspace: str | Path, filename: str) -> bool:
    try:
        path = os.fsencode(os.path.join(bindspace, filename))
    except UnicodeEncodeError:
        return False
    return len(path) < _SUN_PATH_LIMIT


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """Open a directory; closing it ends a lock on it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Keep other processes from binding in a directory, unless one keeps us from it."""
    import fcntl  # not everywhere

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _lock(fd: int) -> None:
    """
    Keep other processes from binding in a directory.

    Raises:
        TimeoutError: One of them has it locked, and keeps it.
    """
    delay = _FIRST_RETRY
    deadline = trio.current_time() + LOCK_TIMEOUT
    while not _try_lock(fd):
        if trio.current_time() > deadline:
            raise TimeoutError(
                f'another process has had its directory locked for {LOCK_TIMEOUT:g} s'
            )
        # The kernel has no event for this.
        await trio.sleep(delay)
        delay = min(2 * delay, _LAST_RETRY)


def _lock_soon(fd: int) -> bool:
    """Like `_lock()`, for a few milliseconds; return whether it is locked."""
    for _ in range(_LOCK_TRIES):
        if _try_lock(fd):
            return True
        time.sleep(_FIRST_RETRY)
    return False


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _is_stale(path: str) -> bool:
    """Return whether `path` is a socket of ours which nobody listens at."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # a full backlog
            return False
    return False


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as err:
        if err.errno != EADDRINUSE or not _is_stale(path):
            raise
        log.warning('replacing the socket file %s that a dead process left', path)
        os.unlink(path)
        sock.bind(path)


async def start_listener(addr: UDSAddress, **kwargs: Any) -> trio.SocketListener:
    """
    Bind and listen, making the directory if it is missing.

    Args:
        addr: Where.
        **kwargs: Accepted for symmetry with TCP; none is known.
    Raises:
        ConnectionError: The address is taken or cannot be bound; the system's own
            error is its context.
    """
    await trio.lowlevel.checkpoint()
    path = os.fspath(addr.sockpath)
    sock = socket.socket(socket.AF_UNIX)
    # Not through trio, whose `bind()` takes a thread: only the lock is waited for.
    try:
        addr.bindspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(addr.bindspace) as directory:
            await _lock(directory)
            _bind(sock, path)
            os.chmod(path, 0o600)
            sock.listen(BACKLOG)
            bound = _identity(path)
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException as err:
        sock.close()
        if isinstance(err, OSError):
            raise ConnectionError(f'cannot listen at {path!r}: {err}') from err
        raise
    _bound_files[listener] = bound
    return listener


def close_listener(addr: UDSAddress, lstnr: trio.SocketListener) -> None:
    """
    Stop listening and remove the socket file, unless it is another listener's now.

    A missing one is warned of.
    """
    path = os.fspath(addr.sockpath)
    bound = _bound_files.pop(lstnr, None)
    try:
        with _opened(addr.bindspace) as directory:
            locked = _lock_soon(directory)
            if bound is not None and lstnr.socket.fileno() != -1:
                # Nobody replaces the file of a socket that listens, locked or not; and
                # as long as it is bound no other file has its inode.
                ours = _identity(path) == bound
            else:
                lstnr.socket.close()
                ours = locked and _is_stale(path)
            if ours:
                os.unlink(path)
            else:
                log.warning('socket file %s is left to who may have it now', path)
    except FileNotFoundError:
        log.warning('socket file %s was already gone', path)
    finally:
        lstnr.socket.close()


def peer_pid(sock: trio.socket.SocketType) -> int | None:
    """Return the process at the other end, `None` where the system does not tell."""
    if hasattr(socket, 'SO_PEERCRED'):
        return _peer_cred(sock)[0]
    if sys.platform == 'darwin':
        with suppress(OSError):
            return sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
    return None


def peer_uid(sock: trio.socket.SocketType) -> int | None:
    """Return the user at the other end, `None` where the system does not tell."""
    if hasattr(socket, 'SO_PEERCRED'):
        return _peer_cred(sock)[1]
    if sys.platform == 'darwin':
        cred = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE)
        uid: int = struct.unpack_from('=II', cred)[1]
        return uid
    return None


def _peer_cred(sock: trio.socket.SocketType) -> tuple[int, int, int]:
    cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('3i'))
    pid, uid, gid = struct.unpack('3i', cred)
    return pid, uid, gid


async def _connect(path: str) -> trio.SocketStream:
    """Connect, waiting while the listener's backlog is full."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        if hasattr(socket, 'SO_PASSCRED'):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        delay = _FIRST_RETRY
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                sock.connect(path)
                break
            except BlockingIOError:
                # The kernel has no event for this.
                await trio.sleep(delay)
                delay = min(2 * delay, _LAST_RETRY)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


class MsgpackUDSStream(MsgpackTransport):
    """Messages over a Unix socket."""

    address_type: ClassVar[type[Any]] = UDSAddress

    @property
    def maddr(self) -> Any | str:
        """The peer's address as a `multiaddr.Multiaddr`."""
        return super().maddr

    @classmethod
    async def connect_to(
        cls,
        addr: UDSAddress,
        prefix_size: int = 4,
        codec: MsgCodec | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Connect; waits while the listener is too busy to accept.

        Raises:
            ConnectionError: Nobody listens there.
        """
        path = os.fspath(addr.sockpath)
        try:
            stream = await _connect(path)
        except OSError as err:
            raise ConnectionError(f'cannot connect to {path!r}: {err}') from err
        try:
            return cls(stream, prefix_size=prefix_size, codec=codec)
        except BaseException:
            stream.socket.close()
            raise

    async def authenticate(self) -> None:
        """
        Make sure that the peer is a process of our own user.

        Raises:
            TransportClosed: It is not; the connection has to be closed.
        """
        uid, own = peer_uid(self.stream.socket), os.getuid()
        if uid not in (own, None):
            raise self._closed(
                f'{type(self).__name__!r} refused: the process at the other end runs '
                f'as uid {uid}, we as {own}',
                loglevel='warning',
            )

    @classmethod
    def get_stream_addrs(
        cls, stream: trio.SocketStream
    ) -> tuple[UDSAddress, UDSAddress]:
        """
        Return the local and the remote address: the listener's path, for both ends.

        Raises:
            ValueError: Neither end has a path.
        """
        sock = stream.socket
        names = sock.getpeername(), sock.getsockname()
        # A name of bytes is an abstract one, which the kernel made up.
        path = next((name for name in names if name and isinstance(name, str)), None)
        if path is None:
            raise ValueError(f'a Unix socket whose ends have no path: {names}')
        filedir, filename = Path(path).parent, Path(Path(path).name)
        return (
            UDSAddress(filedir, filename, os.getpid()),
            UDSAddress(filedir, filename, peer_pid(sock)),
        )
