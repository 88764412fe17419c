"""What `tractor.msg` offers, and that it costs nothing until used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import tractor.msg

NAMES = (
    'NamespacePath Struct MsgCodec MsgDec mk_codec mk_dec apply_codec current_codec'
    ' _def_msgspec_codec _def_tractor_codec _ctxvar_MsgCodec PayloadMsg Aid SpawnSpec'
    ' Start StartAck Started Yield Stop Return CancelAck Error PayloadT __msg_types__'
    ' MsgType __msg_spec__ MSG_TYPES Raw ValidationError DecodeError MsgspecError'
    ' decode_any'
)


@pytest.mark.parametrize('name', NAMES.split())
def test_name(name):
    """The name is there and listed."""
    assert getattr(tractor.msg, name) is not None
    assert name in dir(tractor.msg)


@pytest.mark.parametrize('name', ['types', 'ptr', 'pretty_struct', '_codec', '_exts'])
def test_submodule(name):
    """The submodule is an attribute."""
    assert getattr(tractor.msg, name) is import_module(f'tractor.msg.{name}')


@pytest.mark.parametrize('name', ['types', '_codec', 'pretty_struct', 'ptr'])
def test_table_agrees_with_the_module(name):
    """Type checkers read the module's `__all__`, the table must list the same."""
    module = getattr(tractor.msg, name)
    listed = set(tractor.msg._NAMES[name].split())
    assert all(hasattr(module, each) for each in listed)
    assert listed == set(getattr(module, '__all__', listed))


def test_import_is_lazy():
    """Importing the package loads neither msgspec nor a submodule."""
    code = (
        'import sys, tractor.msg\n'
        "assert 'msgspec' not in sys.modules\n"
        "assert not [n for n in sys.modules if n.startswith('tractor.msg.')]\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=20)
