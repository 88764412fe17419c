"""
The registry table: which actor listens where, and who waits for a name.

`Names` owns both facts.  One address belongs to at most one actor: a new owner
evicts the old one, whose process must be gone, since it held the socket.  Entries
keep the order in which their actors first registered.  Names are not unique, uids
are.  Waiters are opaque tokens; `register()` hands back those to be woken, so that
nothing here awaits.  `tractor.discovery._registry.Registrar` obeys this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

type Uid = tuple[str, str]
type Addr = tuple[str, int] | tuple[str, str]


def as_uid(uid: Iterable[object]) -> Uid:
    """Return `uid` as a `(name, uuid)` pair of strings; the wire makes it a list."""
    name, uuid = uid
    return str(name), str(uuid)


def as_addr(addr: Sequence[str | int]) -> Addr:
    """Return `addr` as the plain pair that serves as a key."""
    return tuple(addr)  # type: ignore[return-value]


class Names[W]:
    """
    Actors with their addresses, and the waiters `W` for names not yet taken.

    Attributes:
        entries: uid -> its addresses in the order they were registered.
        waiters: name -> tokens; a name without waiters has no key.
    """

    __slots__ = ('entries', 'waiters')

    def __init__(self) -> None:
        self.entries: dict[Uid, list[Addr]] = {}
        self.waiters: dict[str, list[W]] = {}

    def register(self, uid: Iterable[object], *addrs: Sequence[str | int]) -> list[W]:
        """
        Give each of `addrs` to `uid`, evicting any other owner.

        Returns:
            The waiters for that name, which are forgotten here and must be woken.
        """
        uid = as_uid(uid)
        for addr in map(as_addr, addrs):
            owner = self.owner(addr)
            if owner is not None and owner != uid:
                self._remove(owner, addr)
            own = self.entries.setdefault(uid, [])
            if addr not in own:
                own.append(addr)
        return self.waiters.pop(uid[0], [])

    def unregister(self, uid: Iterable[object]) -> list[Addr] | None:
        """Forget an actor; return its addresses, or `None` if it is unknown."""
        return self.entries.pop(as_uid(uid), None)

    def delete_addr(
        self, addr: Sequence[str | int], uid: Iterable[object] | None = None
    ) -> Uid | None:
        """
        Take `addr` from its owner; return the owner, or `None` without one.

        Args:
            addr: Unwrapped.
            uid: Who the owner has to be; `None` means whoever it is.
        """
        addr = as_addr(addr)
        owner = self.owner(addr)
        if owner is None or (uid is not None and owner != as_uid(uid)):
            return None
        self._remove(owner, addr)
        return owner

    def owner(self, addr: Addr) -> Uid | None:
        """Return the actor that `addr` belongs to, or `None`."""
        for uid, addrs in self.entries.items():
            if addr in addrs:
                return uid
        return None

    def find(self, name: str) -> list[Addr] | None:
        """Return the addresses of the first actor whose name or uuid is `name`."""
        return next((addrs for _, addrs in self.find_all(name)), None)

    def find_all(self, name: str) -> list[tuple[Uid, list[Addr]]]:
        """Return all actors whose name or uuid is `name`, oldest first."""
        return [
            (uid, list(addrs))
            for uid, addrs in self.entries.items()
            if name in uid and addrs
        ]

    def addresses(self, name: str) -> list[Addr]:
        """Return all addresses of all actors called `name`, oldest actor first."""
        return [
            addr
            for (taken, _), addrs in self.entries.items()
            if taken == name
            for addr in addrs
        ]

    def listing(self) -> dict[str, list[Addr]]:
        """Return `'<name>.<uuid>' -> addresses` as the wire needs string keys."""
        return {'.'.join(uid): list(addrs) for uid, addrs in self.entries.items()}

    def add_waiter(self, name: str, waiter: W) -> None:
        """Remember who is to be woken when `name` is next registered."""
        self.waiters.setdefault(name, []).append(waiter)

    def drop_waiter(self, name: str, waiter: W) -> None:
        """Forget a waiter that gave up; no effect on one already handed back."""
        waiting = self.waiters.get(name)
        if waiting is None or waiter not in waiting:
            return
        waiting.remove(waiter)
        if not waiting:
            del self.waiters[name]

    def _remove(self, uid: Uid, addr: Addr) -> None:
        """Take one address from an entry; an entry without addresses goes."""
        addrs = self.entries[uid]
        addrs.remove(addr)
        if not addrs:
            del self.entries[uid]
