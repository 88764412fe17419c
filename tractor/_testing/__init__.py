"""
Support for tests of actor programs: a pytest plugin, a decorator and helpers.

Loaded only by test suites; no module of the runtime imports it.  A suite activates the
plugin with `-p tractor._testing.pytest`.
"""

from __future__ import annotations

from tractor._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        'break_ipc': '.fault_simulation:break_ipc',
        'examples_dir': '._checkout:examples_dir',
        'expect_ctxc': '._expect:expect_ctxc',
        'mk_cmd': '._checkout:mk_cmd',
        'repodir': '._checkout:repodir',
        'tractor_test': '._root_test:tractor_test',
        'addr': '.addr',
        'fault_simulation': '.fault_simulation',
        'pytest': '.pytest',
        'samples': '.samples',
        'trace': '.trace',
        '_reap': '._reap',
    },
)
