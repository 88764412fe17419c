"""What a process knows about itself: variables, actor, directories, environment."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from tractor import log
from tractor._exceptions import InternalError, NoRuntime
from tractor.msg.types import Aid
from tractor.runtime import _state
from tractor.runtime._state import RuntimeVars, get_rt_dir

DEFAULTS = {
    '_is_root': False,
    '_root_mailbox': (None, None),
    '_root_addrs': [],
    '_enable_tpts': ['tcp'],
    '_registry_addrs': [],
    '_debug_mode': False,
    'repl_fixture': False,
    'use_greenback': False,
    'use_stackscope': False,
    '_is_infected_aio': False,
}


@pytest.fixture
def _variables():
    """Put the runtime variables back after a test that sets them."""
    before = _state.get_runtime_vars()
    yield
    _state.set_runtime_vars(before)


@pytest.fixture
def no_actor(monkeypatch):
    monkeypatch.setattr(_state, '_current_actor', None)
    monkeypatch.setattr(_state, '_last_actor_terminated', None)


def fake_actor(name='worker'):
    return SimpleNamespace(aid=Aid(name, 'abcdef0123456789', 5))


def test_the_defaults():
    """Every variable and its default, in the table, the struct and a cleared copy."""
    assert DEFAULTS == _state._RUNTIME_VARS_DEFAULTS
    assert _state.get_runtime_vars(clear_values=True) == DEFAULTS
    struct = RuntimeVars()
    assert {
        name: getattr(struct, name) for name in struct.__struct_fields__
    } == DEFAULTS


@pytest.mark.usefixtures('_variables')
def test_a_copy_is_a_copy():
    """Changing what `get_runtime_vars()` returned changes nothing else."""
    copied = _state.get_runtime_vars()
    copied['_is_root'] = 'changed'
    copied['_enable_tpts'].append('uds')
    _state.get_runtime_vars(clear_values=True)['_root_addrs'].append(1)
    assert _state.get_runtime_vars(clear_values=True) == DEFAULTS
    assert _state._runtime_vars['_is_root'] != 'changed'
    assert 'changed' not in _state._runtime_vars['_enable_tpts']


@pytest.mark.usefixtures('_variables')
@pytest.mark.parametrize('kind', [dict, RuntimeVars])
def test_setting_replaces_the_contents_in_place(kind):
    """The dict stays the same object; a dict and a struct are taken alike."""
    live = _state._runtime_vars
    _state.set_runtime_vars(kind(**(DEFAULTS | {'_debug_mode': True})))
    assert _state._runtime_vars is live
    assert live == DEFAULTS | {'_debug_mode': True}
    assert _state.is_debug_mode()
    assert _state.debug_mode is _state.is_debug_mode
    assert not _state.is_root_process()


@pytest.mark.usefixtures('_variables')
def test_the_struct_form():
    """`as_dict=False` gives a struct, which takes updates by name."""
    _state._runtime_vars['_is_root'] = True
    struct = _state.get_runtime_vars(as_dict=False)
    assert struct._is_root is True
    struct.update({'_is_root': False, 'use_stackscope': True})
    assert struct.use_stackscope is True
    assert _state.is_root_process()
    with pytest.raises(AttributeError):
        struct.update({'no_such_variable': 1})
    other = RuntimeVars()
    other.update(struct)
    assert other.use_stackscope is True


@pytest.mark.usefixtures('_variables')
def test_the_transports_of_the_tree():
    """`current_ipc_protos()` is what is enabled now."""
    _state._runtime_vars['_enable_tpts'] = ['uds']
    assert _state.current_ipc_protos() == ['uds']


def test_the_actor_of_the_process(no_actor, monkeypatch):
    """Without one it raises, and tells how to start one or which one ended."""
    assert _state.current_actor(err_on_no_runtime=False) is None
    assert _state.last_actor() is None
    with pytest.raises(NoRuntime, match='open_root_actor'):
        _state.current_actor()
    monkeypatch.setattr(_state, '_last_actor_terminated', fake_actor('gone'))
    with pytest.raises(NoRuntime, match="'gone'"):
        _state.current_actor()
    assert _state.last_actor().aid.name == 'gone'
    actor = fake_actor()
    monkeypatch.setattr(_state, '_current_actor', actor)
    assert _state.current_actor() is actor


def test_log_records_name_the_actor(no_actor, monkeypatch):
    """Records carry the actor's name and the start of its uuid, once there is one."""
    assert log.record_context()['actor_name'] == 'no actor_name context'
    monkeypatch.setattr(_state, '_current_actor', fake_actor())
    context = log.record_context()
    assert context['actor_name'] == 'worker'
    assert context['actor_uid'] == 'abcdef'


def test_the_context_of_a_task():
    """The current context is a context variable; an error is made on request."""
    assert _state.current_ipc_ctx() is None
    with pytest.raises(InternalError, match='no IPC context'):
        _state.current_ipc_ctx(error_on_not_set=True)
    token = _state._ctxvar_Context.set('ctx')
    assert _state.current_ipc_ctx(error_on_not_set=True) == 'ctx'
    _state._ctxvar_Context.reset(token)


def test_the_main_process_without_multiprocessing(monkeypatch):
    """A process that never loaded `multiprocessing` was not started by it."""
    monkeypatch.delitem(sys.modules, 'multiprocessing.process', raising=False)
    assert _state.is_main_process()
    assert 'multiprocessing.process' not in sys.modules


def test_the_main_process_with_multiprocessing(monkeypatch):
    """Otherwise its own idea of the process name decides."""
    assert _state.is_main_process()
    monkeypatch.setattr(multiprocessing.current_process(), '_name', 'Worker-1')
    assert not _state.is_main_process()


# The runtime directory


@pytest.fixture(params=['linux', 'darwin'])
def base(request, tmp_path, monkeypatch):
    """The directory that `get_rt_dir()` should return; it does not exist yet."""
    monkeypatch.setattr(sys, 'platform', request.param)
    if request.param == 'darwin':
        monkeypatch.setattr(_state, '_DARWIN_TMPDIR', tmp_path)
        return tmp_path / f'tractor-{os.getuid()}'

    def user_runtime_dir(*, appname):
        return str(tmp_path / appname)

    monkeypatch.setattr(platformdirs, 'user_runtime_dir', user_runtime_dir)
    return tmp_path / 'tractor'


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def unsafe():
    kind = 'Darwin' if sys.platform == 'darwin' else 'POSIX'
    return pytest.raises(PermissionError, match=f'Unsafe {kind}')


def test_the_directory_is_made_for_its_owner_alone(base):
    """It exists on return, with mode 0700 whatever the umask."""
    before = os.umask(0)
    try:
        assert get_rt_dir() == base
    finally:
        os.umask(before)
    assert mode_of(base) == 0o700
    assert get_rt_dir() == base


def test_the_application_names_it(base):
    """Another application has another directory."""
    other = get_rt_dir(appname='other')
    assert other == base.with_name(base.name.replace('tractor', 'other'))


@pytest.mark.parametrize('mode', [0o755, 0o777, 0o500])
def test_the_mode_of_an_own_directory_is_corrected(base, mode):
    """A directory of ours is closed to others."""
    base.mkdir()
    base.chmod(mode)
    get_rt_dir()
    assert mode_of(base) == 0o700


def test_a_symlink_is_refused(base, tmp_path):
    """A link is not followed, and its target is left alone."""
    target = tmp_path / 'target'
    target.mkdir(mode=0o755)
    base.symlink_to(target)
    with unsafe():
        get_rt_dir('below')
    assert mode_of(target) == 0o755
    assert os.listdir(target) == []


def test_a_file_is_refused(base):
    """What is no directory is refused."""
    base.write_text('')
    with unsafe():
        get_rt_dir()


def test_a_directory_of_another_user_is_refused(base, monkeypatch):
    """Ownership is checked before any mode is changed."""
    base.mkdir(mode=0o755)
    owner = os.lstat(base).st_uid
    if sys.platform == 'darwin':
        base.rename(base.with_name(f'tractor-{owner + 1}'))
        base = base.with_name(f'tractor-{owner + 1}')
    monkeypatch.setattr(os, 'getuid', lambda: owner + 1)
    with unsafe():
        get_rt_dir()
    assert mode_of(base) == 0o755


@pytest.mark.parametrize('mode', [0o700, 0o1777])
def test_a_parent_of_another_user_is_refused(base, tmp_path, monkeypatch, mode):
    """Who owns the parent can exchange what is in it, also where it is sticky."""
    tmp_path.chmod(mode)
    own_parent_by(monkeypatch, tmp_path, os.lstat(tmp_path).st_uid + 1)
    with unsafe() as caught:
        get_rt_dir()
    assert not base.exists()
    if sys.platform != 'darwin':
        assert 'set XDG_RUNTIME_DIR to' in str(caught.value)


def test_a_parent_of_root_is_accepted(base, tmp_path, monkeypatch):
    """Root could do anything anyway; its `/tmp` is sticky."""
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(os, 'getuid', lambda: 1000)
    own_parent_by(monkeypatch, tmp_path, 0)
    _state._check_parent(base)


@pytest.mark.parametrize('mode', [0o770, 0o702, 0o777])
def test_a_parent_that_others_write_to_has_to_be_sticky(base, tmp_path, mode):
    """Whoever may write to the parent can exchange what is in it."""
    tmp_path.chmod(mode)
    with unsafe() as caught:
        get_rt_dir()
    assert f'mode {mode:04o}' in str(caught.value)
    assert not base.exists()
    tmp_path.chmod(mode | stat.S_ISVTX)
    assert get_rt_dir() == base


def own_parent_by(monkeypatch, path, uid):
    """Have the system say that a directory belongs to some user."""
    real = os.stat

    def stat_as(asked, **kwargs):
        found = list(real(asked, **kwargs))
        if Path(asked) == path:
            found[stat.ST_UID] = uid
        return os.stat_result(found)

    monkeypatch.setattr(_state.os, 'stat', stat_as)


def test_sub_directories_are_checked_part_by_part(base, tmp_path):
    """Each part is made like the first; a link on the way is refused before it."""
    assert get_rt_dir(Path('a') / 'b') == base / 'a/b'
    assert mode_of(base / 'a') == mode_of(base / 'a/b') == 0o700
    (base / 'a').chmod(0o755)
    get_rt_dir('a/b')
    assert mode_of(base / 'a') == 0o700
    target = tmp_path / 'target'
    target.mkdir()
    (base / 'link').symlink_to(target)
    with unsafe():
        get_rt_dir('link/below')
    assert os.listdir(target) == []


@pytest.mark.parametrize('subdir', ['/abs', '..', 'a/../b', '../x'])
def test_a_sub_directory_stays_inside(base, subdir):
    """An absolute path and `..` are errors, and nothing is made."""
    with pytest.raises(ValueError, match='relative'):
        get_rt_dir(subdir)
    assert not base.exists()


def test_missing_parents_are_made_private(tmp_path, monkeypatch):
    """What has to be made above the directory is nobody else's either."""
    deep = tmp_path / 'one/two'
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(platformdirs, 'user_runtime_dir', lambda appname: deep)
    get_rt_dir()
    assert mode_of(deep.parent) == 0o700


def test_no_login_session_is_no_reason_to_warn(tmp_path):
    """Without `XDG_RUNTIME_DIR` nothing is written to stderr."""
    script = 'from tractor.runtime._state import get_rt_dir; get_rt_dir()'
    env = {k: v for k, v in os.environ.items() if k != 'XDG_RUNTIME_DIR'}
    done = subprocess.run(
        [sys.executable, '-c', script],
        env=env | {'TMPDIR': str(tmp_path)},
        cwd=Path(_state.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ''


# The environment


@pytest.mark.parametrize(
    ('name', 'read'),
    [
        ('TRACTOR_LOGLEVEL', _state.env_loglevel),
        ('TRACTOR_SPAWN_METHOD', _state.env_spawn_method),
    ],
)
def test_plain_variables(name, read, monkeypatch):
    """The text, or `None` when unset or empty."""
    monkeypatch.setenv(name, 'value')
    assert read() == 'value'
    monkeypatch.setenv(name, '')
    assert read() is None
    monkeypatch.delenv(name)
    assert read() is None


def test_the_cookie_file(monkeypatch):
    """A path, or `None`."""
    monkeypatch.setenv('TRACTOR_COOKIE_FILE', '/a/b')
    assert _state.env_cookie_file() == Path('/a/b')
    monkeypatch.delenv('TRACTOR_COOKIE_FILE')
    assert _state.env_cookie_file() is None


def test_the_frame_limit(monkeypatch):
    """A number of bytes; 256 MiB by default."""
    monkeypatch.setenv('TRACTOR_MAX_FRAME', '1000')
    assert _state.env_max_frame() == 1000
    monkeypatch.delenv('TRACTOR_MAX_FRAME')
    assert _state.env_max_frame() == 256 * 2**20


@pytest.mark.parametrize('value', ['0', '-1', '1e6', '1k', ' ', f'{2**32}', '²'])
def test_a_frame_limit_that_is_none(value, monkeypatch):
    """Garbage is an error that names the variable, the range and the remedy."""
    monkeypatch.setenv('TRACTOR_MAX_FRAME', value)
    with pytest.raises(ValueError, match=r'TRACTOR_MAX_FRAME=.*unset it'):
        _state.env_max_frame()


def test_the_busy_poll(monkeypatch):
    """A number of microseconds; 200 by default, and 0 is one."""
    monkeypatch.setenv('TRACTOR_BUSY_POLL', '50')
    assert _state.env_busy_poll() == 50
    monkeypatch.setenv('TRACTOR_BUSY_POLL', '0')
    assert _state.env_busy_poll() == 0
    monkeypatch.delenv('TRACTOR_BUSY_POLL')
    assert _state.env_busy_poll() == 200


@pytest.mark.parametrize('value', ['-1', '1e2', '0.5', ' ', '10001', '²'])
def test_a_busy_poll_that_is_none(value, monkeypatch):
    """Garbage is an error that names the variable, the range and the remedy."""
    monkeypatch.setenv('TRACTOR_BUSY_POLL', value)
    with pytest.raises(ValueError, match=r'TRACTOR_BUSY_POLL=.*from 0 to 10000; unset'):
        _state.env_busy_poll()
