"""
The registrar: an actor that also keeps the names of all others.

It owns a `Names` table and the trio events of those who wait for a name; the rules
are in `tractor._protocol.names`.  Its coroutine methods are called by every actor
through the namespace `'self'`, mostly from `tractor.discovery._api`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from tractor._protocol.names import Addr, Names, Uid, as_uid
from tractor.log import get_logger
from tractor.runtime._runtime import Actor

log = get_logger(__name__)


class Registrar(Actor):
    """The actor that answers look-ups; it registers itself like everyone else."""

    is_registrar = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: Names[trio.Event] = Names()

    @property
    def _registry(self) -> dict[Uid, list[Addr]]:
        """The live table `(name, uuid) -> addresses`, oldest actor first."""
        return self._names.entries

    @property
    def _waiters(self) -> dict[str, list[trio.Event]]:
        """The live table `name -> events` of pending `wait_for_actor()` calls."""
        return self._names.waiters

    def is_registry(self) -> bool:
        """Return `True`; the old spelling of `is_registrar`."""
        return self.is_registrar

    async def find_actor(self, name: str) -> list[Addr] | None:
        """
        Return the addresses of the first actor whose name or uuid is `name`.

        Returns:
            Unwrapped addresses in the order registered, or `None` if nobody matches.
        """
        return self._names.find(name)

    async def find_actors(self, name: str) -> list[tuple[Uid, list[Addr]]]:
        """
        Return every actor whose name or uuid is `name`, oldest first.

        Returns:
            Each `(uid, addresses)`: `(name, uuid)`, and unwrapped addresses in the
            order registered.
        """
        return self._names.find_all(name)

    async def get_registry(self) -> dict[str, list[Addr]]:
        """Return `'<name>.<uuid>' -> addresses` of every registered actor."""
        return self._names.listing()

    async def wait_for_actor(self, name: str) -> list[Addr]:
        """
        Wait until an actor called `name` is registered.

        A cancelled wait leaves nothing behind.

        Returns:
            All addresses of all actors of that name, oldest actor first.
        """
        # A loop: the actor may have left again before this task runs.
        while not (addrs := self._names.addresses(name)):
            registered = trio.Event()
            self._names.add_waiter(name, registered)
            try:
                await registered.wait()
            finally:
                self._names.drop_waiter(name, registered)
        return addrs

    async def register_actor(
        self, uid: Uid, addr: Addr, others: Iterable[Addr] = ()
    ) -> None:
        """
        Add addresses of an actor, then wake whoever waits for its name.

        Args:
            uid: `(name, uuid)`.
            addr: Unwrapped address; any other actor that held it loses it.
            others: More of them; who is woken sees all.
        """
        for registered in self._names.register(uid, addr, *others):
            registered.set()

    async def unregister_actor(self, uid: Uid) -> None:
        """Forget the actor `(name, uuid)`; an unknown one is only logged."""
        if self._names.unregister(uid) is None:
            log.warning('cannot unregister %s: it is not registered', as_uid(uid))

    def _child_has_left(self, uid: Uid) -> None:
        """Drop a child that ended, however it did: it need not unregister itself."""
        self._names.unregister(uid)

    async def delete_addr(self, addr: Addr, uid: Uid | None = None) -> Uid | None:
        """
        Take a stale address from its owner; return the owner or `None`.

        Args:
            addr: Unwrapped address.
            uid: Who it was stale for: another owner keeps it.  `None` means whoever
                it belongs to.
        """
        return self._names.delete_addr(addr, uid)


Arbiter = Registrar  # the old name
