"""
tractor: structured-concurrent actors for trio.

Nurseries own actors in other processes the way a trio nursery owns tasks; results,
errors, streams and cancellation cross the boundary as in one trio program.
"""

from __future__ import annotations

from ._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        'Actor': 'tractor.runtime._runtime:Actor',
        'ActorNursery': 'tractor.runtime._supervise:ActorNursery',
        'Arbiter': 'tractor.discovery._registry:Registrar',
        'Channel': 'tractor.ipc._chan:Channel',
        'Context': 'tractor._context:Context',
        'ContextCancelled': 'tractor._exceptions:ContextCancelled',
        'ModuleNotExposed': 'tractor._exceptions:ModuleNotExposed',
        'MsgStream': 'tractor._streaming:MsgStream',
        'MsgTypeError': 'tractor._exceptions:MsgTypeError',
        'Portal': 'tractor.runtime._portal:Portal',
        'Registrar': 'tractor.discovery._registry:Registrar',
        'RemoteActorError': 'tractor._exceptions:RemoteActorError',
        'RuntimeVars': 'tractor.runtime._state:RuntimeVars',
        'TransportClosed': 'tractor._exceptions:TransportClosed',
        'context': 'tractor._ctx_mark:context',
        'current_actor': 'tractor.runtime._state:current_actor',
        'current_ipc_ctx': 'tractor.runtime._state:current_ipc_ctx',
        'debug_mode': 'tractor.runtime._state:debug_mode',
        'devx': 'tractor.devx',
        'discovery': 'tractor.discovery',
        'find_actor': 'tractor.discovery._api:find_actor',
        'get_registry': 'tractor.discovery._api:get_registry',
        'get_runtime_vars': 'tractor.runtime._state:get_runtime_vars',
        'ipc': 'tractor.ipc',
        'is_root_process': 'tractor.runtime._state:is_root_process',
        'log': 'tractor.log',
        'msg': 'tractor.msg',
        'open_actor_cluster': 'tractor._clustering:open_actor_cluster',
        'open_nursery': 'tractor.runtime._supervise:open_nursery',
        'open_root_actor': 'tractor._root:open_root_actor',
        'query_actor': 'tractor.discovery._api:query_actor',
        'run_daemon': 'tractor._root:run_daemon',
        'runtime': 'tractor.runtime',
        'spawn': 'tractor.spawn',
        'stream': 'tractor._streaming:stream',
        'trionics': 'tractor.trionics',
        'wait_for_actor': 'tractor.discovery._api:wait_for_actor',
        '_clustering': 'tractor._clustering',
        '_context': 'tractor._context',
        '_exceptions': 'tractor._exceptions',
        '_root': 'tractor._root',
        '_streaming': 'tractor._streaming',
    },
)
