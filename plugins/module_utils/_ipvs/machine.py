# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IPVS table of the machine we run on. PRIVATE to the collection: the only place that speaks to IPVS."""

from __future__ import annotations

import errno
from typing import Collection, Iterable, Iterator, Sequence

from .. import _host as host
from .._declared.suggestions import other_scheduler
from .._errors import KernelError, LvsError, ToolError
from .._model import IpvsOperation, Pool, ServiceId, VirtualService, family_of
from .._netlink.machine import GenericSocket
from .._netlink.messages import Attributes, nested
from . import ipvsadm, wire
from .wire import Entry

_SHOW_IPVS = ["modprobe", "--show-depends", "ip_vs"]
_LOAD_IPVS = ["modprobe", "ip_vs"]


class IpvsTable:
    """Virtual services with their real servers, to read and to write. Reading loads no kernel module."""

    def __init__(self) -> None:
        self._socket = GenericSocket(wire.IPVS_GENL_NAME, wire.IPVS_GENL_VERSION)

    def close(self) -> None:
        self._socket.close()

    def pools(self, only: Collection[ServiceId] | None = None) -> dict[ServiceId, Pool]:
        """Virtual services with their real servers, as they were at one time.

        One that somebody removes between the two looks as if it had no real servers; then all is read again.
        """
        while True:
            pools = pools_of(self.entries(only))
            empty = {key for key, pool in pools.items() if not pool.real_servers}
            if not empty or empty <= {wire.decode_id(service) for service in self._services()}:
                return pools

    def _services(self) -> list[Attributes]:
        found = self._socket.dump(wire.CMD_GET_SERVICE) if self._socket.family else []
        return [nested(entry, wire.ATTR_SERVICE) for entry in found]

    def entries(self, only: Collection[ServiceId] | None = None) -> Iterator[Entry]:
        """Virtual services, all or only some, each with its real servers, as the kernel reports them."""
        for service in self._services():
            service_id = wire.decode_id(service)
            if only is None or service_id in only:
                yield service, self._real_servers(service_id)

    def _real_servers(self, service_id: ServiceId) -> list[Attributes]:
        found = self._socket.dump(wire.CMD_GET_DEST, wire.encode_id(service_id))
        return [nested(entry, wire.ATTR_DEST) for entry in found]

    def timeouts(self) -> dict[str, int]:
        """The connection timeouts in seconds; nothing while ip_vs is not loaded."""
        return wire.decode_timeouts(self._socket.get(wire.CMD_GET_CONFIG)) if self._socket.family else {}

    def daemons(self) -> list[dict[str, object]]:
        """The running connection sync daemons."""
        found = self._socket.dump(wire.CMD_GET_DAEMON) if self._socket.family else []
        return [wire.decode_daemon(nested(daemon, wire.ATTR_DAEMON)) for daemon in found]

    def foresee(self, changes: Sequence[IpvsOperation]) -> None:
        """Raises LvsError if this kernel cannot have what the changes need; loads nothing.

        What comes with packages is not missed: check mode also foretells the run that installs them.
        """
        self._refuse_beside_sync(changes)
        if changes and not self._socket.family and host.installed("modprobe"):
            status, _output, said = host.attempt(_SHOW_IPVS)
            if status:
                raise _no_ipvs(_SHOW_IPVS, status, said)
        _expect_loadable(changes)

    def prepare(self, changes: Sequence[IpvsOperation]) -> None:
        """Load ip_vs if there are changes; the kernel loads schedulers by itself. Raises LvsError without it."""
        self._refuse_beside_sync(changes)
        if changes and not self._socket.family:
            status, _output, said = host.attempt(_LOAD_IPVS)
            if not self._socket.find_family():
                raise _no_ipvs(_LOAD_IPVS, status, said)

    def _refuse_beside_sync(self, changes: Iterable[IpvsOperation]) -> None:
        """The kernel refuses real servers of the other family while a sync daemon runs, and says EINVAL."""
        mixed = [change for change in changes if _is_mixed(change)]
        running = [f"{daemon['state']} on {daemon['interface']}" for daemon in self.daemons()] if mixed else []
        if running:
            why = "no real server may be of the other family than its service while a sync daemon runs"
            raise LvsError(f"{ipvsadm.command_line(mixed[0])}: {why} ({', '.join(running)}); stop the daemon first")

    def write(self, changes: Sequence[IpvsOperation]) -> Iterator[int]:
        """Send changes at once; how many were done. Raises KernelError for the first one that was refused."""
        refused = self._socket.request([(wire.COMMANDS[change.command], _payload(change)) for change in changes])
        yield len(changes) - len(refused)
        for place, code in refused.items():
            raise KernelError(ipvsadm.command_line(changes[place]), code, _meaning(changes[place], code))


def _is_mixed(change: IpvsOperation) -> bool:
    """Whether this adds or edits a real server of the other family than its service's."""
    server = change.real_server
    return server is not None and change.command in "ae" and family_of(server.address) != change.service.id.family


def _expect_loadable(changes: Iterable[IpvsOperation]) -> None:
    """Raises LvsError for schedulers and persistence engines that the kernel would not find when they are named.

    The kernel looks for them with modprobe. Where that does not even know ip_vs it cannot tell: IPVS may be built in,
    or the modules of the running kernel may be gone after an upgrade.
    """
    if not host.installed("modprobe"):
        return
    naming = {
        module: (change, words)
        for change in changes
        if change.command in "AE"
        for module, words in _modules_of(change.service).items()
    }
    missing = [module for module in sorted(naming) if not host.is_loadable(module)]
    if missing and not host.attempt(_SHOW_IPVS)[0]:
        lines = (
            f"{ipvsadm.command_line(change)}: this kernel has no {words}"
            for change, words in (naming[module] for module in missing)
        )
        raise LvsError("\n".join(lines))


def _modules_of(service: VirtualService) -> dict[str, str]:
    """The modules that the kernel asks for by itself when it is told of the service, and what it lacks without them."""
    scheduler, engine = service.scheduler, service.persistence_engine
    found = {f"ip_vs_{scheduler}": f"scheduler {scheduler}{other_scheduler(scheduler)}"} if scheduler != "none" else {}
    return {**found, **({f"ip_vs_pe_{engine}": f"persistence engine {engine}"} if engine else {})}


def _no_ipvs(argv: Sequence[str], status: int, said: str) -> LvsError:
    return LvsError(f"this kernel has no IPVS: {ToolError(argv, status, said)}")


def _payload(operation: IpvsOperation) -> bytes:
    service, server = operation.service, operation.real_server
    if server is None:
        return wire.encode_id(service.id) if operation.command == "D" else wire.encode_service(service)
    encode = wire.encode_real_server_id if operation.command == "d" else wire.encode_real_server
    return wire.encode_id(service.id) + encode(server)


def _meaning(operation: IpvsOperation, code: int) -> str:
    """What an errno of ip_vs_ctl.c means for this operation."""
    if operation.command in "AE" and code == errno.ENOENT:
        return f"it has no {' or no '.join(_modules_of(operation.service).values())}"
    return {
        errno.EEXIST: "it was added by somebody else meanwhile",
        errno.ESRCH: "the virtual service was removed by somebody else meanwhile",
        errno.ENOENT: "the real server was removed by somebody else meanwhile",
        errno.ERANGE: "the lower threshold is above the upper one",
        errno.EINVAL: "an address is not unicast, or a setting is unknown to this kernel",
        errno.EPERM: "it takes root",
    }.get(code, "")


def pools_of(entries: Iterable[Entry]) -> dict[ServiceId, Pool]:
    """The kernel's entries as values."""
    pools = (_pool(service, real_servers) for service, real_servers in entries)
    return {pool.service.id: pool for pool in pools}


def _pool(found: Attributes, real_servers: Sequence[Attributes]) -> Pool:
    service = wire.decode_service(found)
    servers = (wire.decode_real_server(real_server, service.id.family) for real_server in real_servers)
    return Pool(service, {server.id: server for server in servers})
