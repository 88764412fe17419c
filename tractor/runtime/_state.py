"""
What one process knows about itself: its actor, its runtime variables, its directories.

Owns the process-wide singletons of the runtime.  `_runtime_vars` is one dict for the
life of the process: others hold references to it, so its contents are replaced and it
never is.  No other module reads a `TRACTOR_*` environment variable.  Used by
everything from the log records up to `open_root_actor()`.
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, overload

from tractor._exceptions import InternalError, NoRuntime, RuntimeFailure
from tractor._lazy import load
from tractor.log import set_context_provider
from tractor.msg.pretty_struct import Struct

if TYPE_CHECKING:
    import trio

    from tractor._context import Context
    from tractor.runtime._runtime import Actor

TransportProtocolKey = Literal['tcp', 'uds']
GilMode = Literal['auto', 'own', 'shared']

# The transport where none is asked for; the test plugin assigns another one.
_def_tpt_proto: TransportProtocolKey = 'tcp'

# Short, since a Unix socket path has 104 bytes there; tests patch it.
_DARWIN_TMPDIR: Path = Path('/tmp')

_MIB: Final = 2**20
MAX_FRAME_DEFAULT: Final = 256 * _MIB  # bytes
MAX_FRAME_LIMIT: Final = 2**32 - 1  # bytes; what the length prefix can express

# That of the kernel's own polling in a virtual machine, `guest_halt_poll_ns`
# (Linux, Documentation/virt/guest-halt-polling.rst), which a host may switch off.
BUSY_POLL_DEFAULT: Final = 200  # microseconds
MAX_BUSY_POLL: Final = 10_000  # microseconds

_current_actor: Actor | None = None
_last_actor_terminated: Actor | None = None
_root_boot: RootBoot | None = None  # that of a root which is on its way up
_ctxvar_Context: ContextVar[Context | None] = ContextVar(  # noqa: N816
    'ipc_context', default=None
)


# The backend of this tree and its mode, as a child is told them by its parent.
_start_method: str | None = None
_subint_gil: GilMode = 'auto'
_interpreter: int = 0  # number of the sub-interpreter this is; 0 for the main one


class RuntimeVars(Struct):
    """The runtime variables as a struct, with their defaults."""

    _is_root: bool = False
    _root_mailbox: tuple[str | None, str | int | None] = (None, None)
    _root_addrs: list[tuple[str, str | int]] = []  # noqa: RUF012
    _enable_tpts: list[TransportProtocolKey] | None = None  # `['tcp']`
    _registry_addrs: list[tuple[str, str | int]] = []  # noqa: RUF012
    _debug_mode: bool = False
    repl_fixture: Any = False
    use_greenback: bool = False
    use_stackscope: bool = False
    _is_infected_aio: bool = False

    def __post_init__(self) -> None:
        # A struct takes only an empty list as a default.
        if self._enable_tpts is None:
            self._enable_tpts = ['tcp']

    def update(self, rtvars: Mapping[str, Any] | RuntimeVars) -> None:
        """
        Set the given variables.

        Raises:
            AttributeError: No such variable; those before it are set.
        """
        for name, value in _as_dict(rtvars).items():
            setattr(self, name, value)


def _as_dict(rtvars: Mapping[str, Any] | RuntimeVars) -> dict[str, Any]:
    """Return a copy as a dict, so that changing a list in it changes no original."""
    if isinstance(rtvars, RuntimeVars):
        rtvars = {name: getattr(rtvars, name) for name in rtvars.__struct_fields__}
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in rtvars.items()
    }


_RUNTIME_VARS_DEFAULTS: Final[dict[str, Any]] = _as_dict(RuntimeVars())
_runtime_vars: Final[dict[str, Any]] = _as_dict(_RUNTIME_VARS_DEFAULTS)


@overload
def get_runtime_vars(
    as_dict: Literal[True] = True, clear_values: bool = False
) -> dict[str, Any]: ...


@overload
def get_runtime_vars(
    as_dict: Literal[False], clear_values: bool = False
) -> RuntimeVars: ...


def get_runtime_vars(
    as_dict: bool = True, clear_values: bool = False
) -> dict[str, Any] | RuntimeVars:
    """
    Return a copy of the runtime variables.

    Args:
        as_dict: `False` returns a `RuntimeVars`.
        clear_values: Return the defaults instead of what is set.
    """
    copied = _as_dict(_RUNTIME_VARS_DEFAULTS if clear_values else _runtime_vars)
    return copied if as_dict else RuntimeVars(**copied)


def set_runtime_vars(rtvars: Mapping[str, Any] | RuntimeVars) -> None:
    """Replace all runtime variables; the dict that holds them stays the same one."""
    copied = _as_dict(rtvars)
    _runtime_vars.clear()
    _runtime_vars.update(copied)


@overload
def current_actor(err_on_no_runtime: Literal[True] = True) -> Actor: ...


@overload
def current_actor(err_on_no_runtime: bool) -> Actor | None: ...


def current_actor(err_on_no_runtime: bool = True) -> Actor | None:
    """
    Return the actor that runs in this process.

    Args:
        err_on_no_runtime: `False` returns `None` where there is none.
    Raises:
        NoRuntime: No runtime is open, and `err_on_no_runtime`.
    """
    if _current_actor is None and err_on_no_runtime:
        last = _last_actor_terminated
        if last is not None:
            name, uuid = last.aid.uid
            why = f'that of the last actor, {name!r} ({uuid}), has ended'
        else:
            why = 'enter `tractor.open_root_actor()` or `tractor.open_nursery()` first'
        raise NoRuntime(f'no actor runtime is open in process {os.getpid()}: {why}')
    return _current_actor


class RootBoot:
    """
    A claim to become the one root of this process, made before anything is awaited.

    Entering it makes the claim, which ends when the root is up or could not come up.

    Args:
        run: The event loop in which it will run.
        over: Set at the end of the claim.
    Raises:
        RuntimeFailure: There is an actor in this process already, or on its way.
    """

    def __init__(self, run: trio.lowlevel.TrioToken, over: trio.Event) -> None:
        actor = actor_of(run)
        if actor is not None or boot_of(run) is not None:
            who = 'on its way up' if actor is None else actor.aid.reprol()
            raise RuntimeFailure(
                f'A current actor already exists in this process: {who}; '
                'open a nursery in it instead'
            )
        self.pid, self.run, self.over = os.getpid(), run, over

    def __enter__(self) -> None:
        global _root_boot
        _root_boot = self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Let those who wait go on; may be called again."""
        global _root_boot
        if _root_boot is self:
            _root_boot = None
        self.over.set()


def boot_of(run: trio.lowlevel.TrioToken) -> RootBoot | None:
    """
    Return the root that is on its way up in this event loop, or `None`.

    Raises:
        RuntimeFailure: There is one in another event loop of this process.
    """
    boot = _root_boot
    if boot is None or boot.pid != os.getpid():
        return None
    if boot.run is not run:
        raise _in_another_loop('on its way up')
    return boot


def actor_of(run: trio.lowlevel.TrioToken) -> Actor | None:
    """
    Return the actor that runs in this event loop, or `None`.

    In a process that was forked from an actor there is none.

    Raises:
        RuntimeFailure: There is one in another event loop of this process.
    """
    global _current_actor
    actor = _current_actor
    if actor is None:
        return None
    if actor.pid != os.getpid():
        _current_actor = None
        _runtime_vars.update(_root_addrs=[], _root_mailbox=None)
        return None
    if actor._run is not None and actor._run is not run:
        raise _in_another_loop(actor.aid.reprol())
    return actor


def _in_another_loop(who: str) -> RuntimeFailure:
    return RuntimeFailure(
        'A current actor already exists in this process, in another event loop: '
        f'{who}; a process has one actor, and other loops need processes of their own'
    )


def last_actor() -> Actor | None:
    """Return the actor of this process that ended last, or `None`."""
    return _last_actor_terminated


def inherit_backend(start_method: str | None, gil: str | None) -> None:
    """
    Take over what the root chose for its tree.

    Args:
        start_method: The spawn backend; `None` leaves it as it is.
        gil: As `set_subint_gil()` takes it; `None` leaves it as it is.
    """
    global _start_method
    if start_method is not None:
        _start_method = start_method
    if gil is not None:
        set_subint_gil(gil)


def inherited_start_method() -> str | None:
    """Return the spawn backend that this actor's parent told it, or `None`."""
    return _start_method


def subint_gil() -> GilMode:
    """Return which GIL sub-interpreter children of this actor get by default."""
    return _subint_gil


def set_subint_gil(mode: str) -> None:
    """
    Set which GIL sub-interpreter children of this actor get by default.

    Args:
        mode: `'own'`; `'shared'`, that of the main interpreter; or `'auto'`: its own,
            unless a module that it serves refuses to be loaded there.
    Raises:
        ValueError: Anything else.
    """
    global _subint_gil
    _subint_gil = checked_gil_mode(mode)


def checked_gil_mode(mode: str) -> GilMode:
    """Return `mode`, or raise `ValueError` if it is none."""
    if mode in ('auto', 'own', 'shared'):
        return mode  # type: ignore[return-value]
    raise ValueError(f'there is no GIL mode {mode!r}: use one of {get_args(GilMode)}')


def adopt_interpreter(number: int) -> None:
    """This is a sub-interpreter of that number; its process has other actors."""
    global _interpreter
    _interpreter = number


def socket_owner(name: str, interpreter: int | None = None) -> str:
    """
    Return how an actor's socket file is named, before its process id.

    Actors of one process may share a name, so those in sub-interpreters add its number.

    Args:
        name: The actor's.
        interpreter: The number of its interpreter; `None` means this one.
    """
    number = _interpreter if interpreter is None else interpreter
    return f'{name}.{number}' if number else name


def is_root_process() -> bool:
    """Return whether the actor of this process is the root of its tree."""
    return bool(_runtime_vars['_is_root'])


def is_main_process() -> bool:
    """Return whether this process is none that `multiprocessing` started."""
    # Loading it costs a child more than the answer is worth; whoever is started by
    # it has it loaded.
    process = sys.modules.get('multiprocessing.process')
    return process is None or process.current_process().name == 'MainProcess'


def is_debug_mode() -> bool:
    """Return whether the tree of this process was opened with `debug_mode=True`."""
    return bool(_runtime_vars['_debug_mode'])


debug_mode = is_debug_mode


def current_ipc_protos() -> list[TransportProtocolKey]:
    """Return the keys of the transports that are enabled in this tree."""
    protos: list[TransportProtocolKey] = _runtime_vars['_enable_tpts']
    return protos


def current_ipc_ctx(error_on_not_set: bool = False) -> Context | None:
    """
    Return the context that the calling task serves or has opened, or `None`.

    Args:
        error_on_not_set: Raise where there is none.
    Raises:
        InternalError: There is none, and `error_on_not_set`.
    """
    ctx = _ctxvar_Context.get()
    if ctx is None and error_on_not_set:
        raise InternalError(
            'this task is in no IPC context: it neither runs for a peer nor is inside '
            '`Portal.open_context()`'
        )
    return ctx


def get_rt_dir(subdir: str | Path | None = None, appname: str = 'tractor') -> Path:
    """
    Return the owner-only runtime directory, where sockets live; make it if missing.

    Args:
        subdir: A relative path below it, made and checked part by part.
        appname: Names the directory.
    Raises:
        ValueError: `subdir` is absolute or contains `..`.
        PermissionError: A part is a symlink, no directory, or not this user's; or
            others can exchange the directory.
    """
    below = Path(subdir or '')
    if below.is_absolute() or '..' in below.parts:
        raise ValueError(
            f'runtime sub-directory {str(subdir)!r} must be relative and without `..`'
        )
    if sys.platform == 'darwin':
        path = Path(_DARWIN_TMPDIR) / f'{appname}-{os.getuid()}'
    else:
        platformdirs = load('platformdirs')  # only who binds a socket file needs it
        with warnings.catch_warnings():
            # It warns where there is no login session, which is nobody's mistake.
            warnings.simplefilter('ignore')
            path = Path(platformdirs.user_runtime_dir(appname=appname))
    _make_parents(path)
    _check_parent(path)
    _make_private(path)
    for part in below.parts:
        path /= part
        _make_private(path)
    return path


def _make_parents(path: Path) -> None:
    missing = []
    for parent in path.parents:
        if parent.exists():
            break
        missing.append(parent)
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)


def _check_parent(path: Path) -> None:
    """Refuse a directory that somebody else could exchange for another one."""
    if sys.platform == 'win32':
        return
    parent = path.parent
    found = os.stat(parent)
    # Being sticky does not bind the owner of the parent.
    if found.st_uid not in (0, os.getuid()):
        raise _unsafe(parent, f'it belongs to uid {found.st_uid}', _elsewhere())
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        why = f'others may exchange what is in it (mode {mode:04o})'
        raise _unsafe(parent, why, f'forbid others to write to it, or {_elsewhere()}')


def _elsewhere() -> str:
    """Return how a user gets the runtime directory to another place."""
    if sys.platform == 'darwin':
        return 'have it made safe'
    return (
        'set XDG_RUNTIME_DIR to a directory that only this user can write to, or unset '
        'it if it was left from another user (as after `sudo -E`)'
    )


def _make_private(path: Path) -> None:
    """Make `path` a directory of this user that nobody else can enter, or refuse it."""
    with suppress(FileExistsError):  # what is there is judged below
        os.mkdir(path, 0o700)
    if sys.platform == 'win32':
        return
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise _unsafe(path, 'it is a symlink')
    if not stat.S_ISDIR(found.st_mode):
        raise _unsafe(path, 'it is no directory')
    if found.st_uid != os.getuid():
        raise _unsafe(path, f'it belongs to uid {found.st_uid}')
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)


def _unsafe(path: Path, why: str, remedy: str = 'remove it') -> PermissionError:
    kind = 'Darwin' if sys.platform == 'darwin' else 'POSIX'
    return PermissionError(
        f'Unsafe {kind} runtime directory {str(path)!r} for uid {os.getuid()}: {why}; '
        f'{remedy}'
    )


def env_loglevel() -> str | None:
    """Return `TRACTOR_LOGLEVEL`, which overrides the root's log level, or `None`."""
    return os.environ.get('TRACTOR_LOGLEVEL') or None


def env_spawn_method() -> str | None:
    """Return `TRACTOR_SPAWN_METHOD`, which overrides the spawn method, or `None`."""
    return os.environ.get('TRACTOR_SPAWN_METHOD') or None


def env_cookie_file() -> Path | None:
    """Return `TRACTOR_COOKIE_FILE`, where the key of TCP connections is, or `None`."""
    value = os.environ.get('TRACTOR_COOKIE_FILE')
    return Path(value) if value else None


def env_tcp_forwarded() -> bool:
    """Return whether `TRACTOR_TCP_FORWARDED` lets others forward TCP connections."""
    return os.environ.get('TRACTOR_TCP_FORWARDED', '0') not in ('', '0')


def env_max_frame() -> int:
    """
    Return `TRACTOR_MAX_FRAME`, the longest message accepted, in bytes.

    Raises:
        ValueError: It is no number from 1 to `MAX_FRAME_LIMIT`.
    """
    value = os.environ.get('TRACTOR_MAX_FRAME')
    if not value:
        return MAX_FRAME_DEFAULT
    if value.isascii() and value.isdigit() and 1 <= int(value) <= MAX_FRAME_LIMIT:
        return int(value)
    raise ValueError(
        f'TRACTOR_MAX_FRAME={value!r} is no number of bytes from 1 to '
        f'{MAX_FRAME_LIMIT}; unset it for the default of {MAX_FRAME_DEFAULT}'
    )


def env_busy_poll() -> int:
    """
    Return `TRACTOR_BUSY_POLL`: for how long an answer is looked for, in microseconds.

    Raises:
        ValueError: It is no number from 0 to `MAX_BUSY_POLL`.
    """
    value = os.environ.get('TRACTOR_BUSY_POLL')
    if not value:
        return BUSY_POLL_DEFAULT
    if value.isascii() and value.isdigit() and int(value) <= MAX_BUSY_POLL:
        return int(value)
    raise ValueError(
        f'TRACTOR_BUSY_POLL={value!r} is no number of microseconds from 0 to '
        f'{MAX_BUSY_POLL}; unset it for the default of {BUSY_POLL_DEFAULT}, 0 never '
        'looks for an answer before it sleeps'
    )


def _log_context() -> dict[str, str]:
    """Return what a log record says about the actor that makes it."""
    actor = _current_actor
    if actor is None:
        return {}
    return {'actor_name': actor.aid.name, 'actor_uid': actor.aid.uuid[:6]}


set_context_provider(_log_context)
