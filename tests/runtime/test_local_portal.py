"""What stands for a portal to this very actor."""

from __future__ import annotations

import dataclasses

from tractor.ipc._chan import Channel
from tractor.runtime._portal import LocalPortal
from tractor.runtime._runtime import Actor


def test_a_local_portal_is_a_dataclass_of_actor_and_channel():
    """It is its own like any portal, however equal another one is."""
    actor, channel = Actor('a', 'uuid'), Channel()
    portal = LocalPortal(actor, channel=channel)
    assert [field.name for field in dataclasses.fields(portal)] == ['actor', 'channel']
    assert portal.actor is actor
    assert portal.chan is portal.channel is channel
    assert repr(portal) == f'<LocalPortal of {actor.aid.reprol()}>'
    assert len({portal, dataclasses.replace(portal)}) == 2
