"""The cookie: who proves what to whom, and which files are good enough."""

from __future__ import annotations

import os
import stat
import threading

import pytest
import trio
from trio.testing import memory_stream_pair

from tractor._exceptions import RuntimeFailure
from tractor.ipc import _auth
from tractor.ipc._auth import (
    HELLO_SIZE,
    MAC_SIZE,
    MAGIC,
    AuthError,
    CookieExchange,
    authenticate,
    ends_of,
    load_cookie,
)

KEY = b'k' * 32
OTHER_KEY = b'o' * 32
CLIENT, SERVER = ('127.0.0.1', 40000), ('127.0.0.1', 1616)
ENDS = ends_of(CLIENT, SERVER)


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch):
    monkeypatch.setattr(_auth, '_cookies', {})


def exchange_between(client_key=KEY, server_key=KEY, server_ends=ENDS):
    client = CookieExchange(client_key, 'client', ENDS)
    server = CookieExchange(server_key, 'server', server_ends)
    client.receive_hello(server.hello)
    server.receive_hello(client.hello)
    return client, server


def test_two_holders_of_the_cookie_convince_each_other():
    """Each side's answer is what the other expects."""
    client, server = exchange_between()
    server.verify(client.answer)
    client.verify(server.answer)
    assert len(client.hello) == HELLO_SIZE
    assert len(client.answer) == MAC_SIZE


@pytest.mark.parametrize('speaker', ['client', 'server'])
def test_another_cookie_convinces_nobody(speaker):
    """An answer made with another key is refused, on either side."""
    client, server = exchange_between(server_key=OTHER_KEY)
    listener, answer = (
        (server, client.answer) if speaker == 'client' else (client, server.answer)
    )
    with pytest.raises(AuthError, match='another cookie'):
        listener.verify(answer)


def test_an_answer_sent_back_proves_nothing():
    """One's own nonce and answer, reflected, are refused: the roles differ."""
    server = CookieExchange(KEY, 'server', ENDS)
    server.receive_hello(server.hello)
    with pytest.raises(AuthError):
        server.verify(server.answer)


def test_an_answer_is_good_for_one_exchange():
    """A recorded answer does not fit the nonces of another exchange."""
    client, _ = exchange_between()
    _, server = exchange_between()
    with pytest.raises(AuthError):
        server.verify(client.answer)


@pytest.mark.parametrize(
    'ends',
    [
        ends_of(('127.0.0.1', 40001), SERVER),
        ends_of(CLIENT, ('127.0.0.1', 1617)),
        ends_of(CLIENT, ('127.0.0.2', 1616)),
        ends_of(SERVER, CLIENT),
        b'',
    ],
)
def test_an_answer_is_good_for_one_connection(ends):
    """An answer that is passed on over a connection with other ends is refused."""
    client, server = exchange_between(server_ends=ends)
    with pytest.raises(AuthError, match='forwards'):
        server.verify(client.answer)
    with pytest.raises(AuthError, match='TRACTOR_TCP_FORWARDED'):
        client.verify(server.answer)


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('127.0.0.1', '::ffff:127.0.0.1'),
        ('127.0.0.1', '::ffff:7f00:1'),
        ('::1', '0:0:0:0:0:0:0:1'),
        ('fe80::1%eth0', 'fe80::1%2'),
        ('fe80::1%eth0', 'FE80:0::1'),
    ],
)
def test_both_sides_write_an_address_alike(one, other):
    """An address has one form, whichever family and text each side's socket has."""
    assert ends_of((one, 5), SERVER) == ends_of((other, 5), SERVER)
    assert ends_of(CLIENT, (one, 5)) == ends_of(CLIENT, (other, 5))


@pytest.mark.parametrize(
    ('hello', 'text'),
    [
        (b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n12345', 'another protocol'),
        (b'\0' * HELLO_SIZE, 'another protocol'),
        (MAGIC + b'\x01' + b'n' * 32, 'version 1'),
    ],
)
def test_another_protocol_is_told_apart(hello, text):
    """What does not begin with our magic and version is refused by name."""
    with pytest.raises(AuthError, match=text):
        CookieExchange(KEY, 'server', ENDS).receive_hello(hello)


def drive(client_key=KEY, server_key=KEY, then=b''):
    """Run both drivers over memory streams; return what the server reads after it."""

    async def main():
        ends = dict(zip(('client', 'server'), memory_stream_pair(), strict=True))
        keys = {'client': client_key, 'server': server_key}
        failures = {}

        async def run(role):
            end = ends[role]

            async def receive(size):
                data = b''
                while len(data) < size and (more := await end.receive_some(1)):
                    data += more
                return data

            try:
                await authenticate(role, keys[role], ENDS, end.send_all, receive)
            except AuthError as err:
                failures[role] = str(err)
                await end.aclose()
            else:
                if role == 'client':
                    await end.send_all(then)

        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(run, 'client')
                tn.start_soon(run, 'server')
            rest = b'' if failures else await ends['server'].receive_some(100)
        return failures, rest

    return trio.run(main)


def test_nothing_of_the_first_frame_is_swallowed():
    """The bytes after the exchange are still in the stream."""
    assert drive(then=b'first frame') == ({}, b'first frame')


def test_both_sides_fail_with_different_cookies():
    """The server refuses first; the client learns that it hung up."""
    failures, _ = drive(server_key=OTHER_KEY)
    assert 'another cookie' in failures['server']
    assert 'hung up' in failures['client']


def test_a_stranger_gets_no_answer_out_of_the_server():
    """A server sends nothing made with its key before the client has proved itself."""

    async def main():
        stranger, end = memory_stream_pair()
        sent = b''

        async def send(data):
            nonlocal sent
            sent += data

        async def receive(size):
            return (await end.receive_some(size)).ljust(size, b'\0')

        await stranger.send_all(CookieExchange(OTHER_KEY, 'client', ENDS).hello)
        await stranger.send_all(b'?' * MAC_SIZE)
        with pytest.raises(AuthError):
            await authenticate('server', KEY, ENDS, send, receive)
        assert len(sent) == HELLO_SIZE

    trio.run(main)


def test_the_cookie_is_made_at_first_use(cookie_file):
    """The first program makes a file for its user only; the next one reads the same."""
    key = load_cookie()
    assert len(key) == 32
    assert stat.S_IMODE(cookie_file.stat().st_mode) == 0o600
    assert bytes.fromhex(cookie_file.read_text()) == key
    assert os.listdir(cookie_file.parent) == [cookie_file.name]
    _auth._cookies.clear()
    assert load_cookie() == key


def test_a_file_is_read_once(cookie_file):
    """A file that changes under a running program has no effect on it."""
    key = load_cookie()
    cookie_file.unlink()
    assert load_cookie() == key


def test_racing_programs_agree(cookie_file, monkeypatch):
    """Programs that make the file at the same time end up with one key."""
    start = threading.Barrier(8)
    monkeypatch.setattr(_auth, '_cookies', NoCache())
    keys = []

    def program():
        start.wait()
        keys.append(load_cookie())

    threads = [threading.Thread(target=program) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert os.listdir(cookie_file.parent) == [cookie_file.name]


class NoCache(dict):
    def get(self, key, default=None):
        return default


def test_a_mask_does_not_open_the_file(cookie_file):
    """The mode is 0600 whatever the umask is."""
    before = os.umask(0)
    try:
        load_cookie()
    finally:
        os.umask(before)
    assert stat.S_IMODE(cookie_file.stat().st_mode) == 0o600


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o620, 0o660])
def test_a_file_that_others_may_use_is_refused(cookie_file, mode):
    """Any access of group or others makes the cookie worthless."""
    load_cookie()
    _auth._cookies.clear()
    cookie_file.chmod(mode)
    with pytest.raises(RuntimeFailure, match='others may use it'):
        load_cookie()


def test_a_symlink_is_refused(cookie_file, tmp_path):
    """A link may lead to a file that somebody else chose."""
    target = tmp_path / 'target'
    target.write_text('00' * 32)
    target.chmod(0o600)
    cookie_file.symlink_to(target)
    with pytest.raises(RuntimeFailure, match='symlink'):
        load_cookie()


def test_a_dangling_symlink_is_refused(cookie_file, tmp_path):
    """No key is made where a link leads."""
    cookie_file.symlink_to(tmp_path / 'nowhere')
    with pytest.raises(RuntimeFailure, match='symlink'):
        load_cookie()
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_only_a_regular_file(cookie_file, make):
    """A directory or a pipe is refused at once, not waited for."""
    make(cookie_file)
    with pytest.raises(RuntimeFailure, match='no regular file'):
        load_cookie()


def test_a_file_of_another_user_is_refused(cookie_file, monkeypatch):
    """Somebody else's file holds somebody else's secret."""
    load_cookie()
    _auth._cookies.clear()
    monkeypatch.setattr(os, 'getuid', lambda: cookie_file.stat().st_uid + 1)
    with pytest.raises(RuntimeFailure, match='belongs to uid'):
        load_cookie()


@pytest.mark.parametrize('text', ['', 'short', '00' * 31, '00' * 33, 'zz' * 32, '\xe9'])
def test_a_file_without_a_key_is_refused(cookie_file, text):
    """Anything but 64 hex digits is an error that names the file and the remedy."""
    cookie_file.write_text(text, encoding='utf-8')
    cookie_file.chmod(0o600)
    with pytest.raises(RuntimeFailure, match=r'hex digits; remove it') as caught:
        load_cookie()
    assert str(cookie_file) in str(caught.value)


def test_a_place_where_nothing_can_be_made(cookie_file, monkeypatch):
    """An impossible path is an error that names the variable."""
    cookie_file.write_text('a file')
    monkeypatch.setenv('TRACTOR_COOKIE_FILE', str(cookie_file / 'below'))
    with pytest.raises(RuntimeFailure, match='TRACTOR_COOKIE_FILE') as caught:
        load_cookie()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize('path', ['cookie', './cookie', '~/cookie'])
def test_a_relative_path_is_refused(monkeypatch, tmp_path, path):
    """It would name another file after a change of directory; nothing is made there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRACTOR_COOKIE_FILE', path)
    with pytest.raises(RuntimeFailure, match='TRACTOR_COOKIE_FILE') as caught:
        load_cookie()
    assert str(tmp_path / path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_default_place_is_the_users_own(monkeypatch, tmp_path):
    """Without the variable the file is in the user's data directory."""
    monkeypatch.delenv('TRACTOR_COOKIE_FILE')
    monkeypatch.setattr('sys.platform', 'linux')
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    assert _auth.cookie_path() == tmp_path / 'data/tractor/cookie'
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_DATA_HOME', 'relative')
    assert _auth.cookie_path() == tmp_path / '.local/share/tractor/cookie'
    monkeypatch.delenv('XDG_DATA_HOME')
    assert _auth.cookie_path() == tmp_path / '.local/share/tractor/cookie'
    assert load_cookie()
    directory = tmp_path / '.local/share/tractor'
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
