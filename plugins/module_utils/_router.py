# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One LVS router as the engine sees it: a state to read, operations to write. PRIVATE to the collection."""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice
from types import TracebackType
from typing import Collection, Iterable, Iterator, Mapping, Sequence

from . import _host as host
from . import _ipvsadm as ipvsadm
from . import _wire as wire
from ._errors import KernelError, LvsError, ParseError, ToolError
from ._foreign import strays
from ._iptables import COMMAND, parse_chain, parse_table, transaction, unreadable
from ._model import (
    FAMILIES,
    IPTABLES,
    IPV4,
    IPV6,
    NFTABLES,
    Chain,
    ChainEdit,
    ChainId,
    IpvsOperation,
    MarkRule,
    Operation,
    Pool,
    RouterState,
    ServiceId,
    VirtualService,
    family_of,
)
from ._netlink import NetlinkSocket, nft_rules
from ._nft_listing import parse_listing
from ._nft_wire import is_native
from ._nftables import nftables_chains, table_words
from ._suggestions import other_scheduler
from ._way import Hook
from ._way_nft import hooks as native_table_hooks
from ._way_nft import native_tables
from ._wire import Entry

# Seconds to wait for the lock that iptables-legacy takes; the nft variant has transactions instead and ignores it.
_XTABLES_WAIT = "10"
_LEGACY_TABLES = {IPV4: "/proc/net/ip_tables_names", IPV6: "/proc/net/ip6_tables_names"}
# iptables-nft exits with 3 when a native nft rule stands in a table that it is asked to print.
_UNREADABLE_STATUS = 3
# The kernel's modules for the words of our rules, and what iptables-restore may say where one is missing.
_RULE_MODULES = {
    " -m comment ": "xt_comment",
    " -m ipvs ": "xt_ipvs",
    " -m multiport ": "xt_multiport",
    " -j MARK ": "xt_mark",
    " -j TCPMSS ": "xt_TCPMSS",
}
_MODULE_MISSING = re.compile(r"missing kernel module|line \d+ failed|No chain/target/match")
# What nft says where the table, or all of nf_tables or of the family, does not exist.
_LISTING = ["nft", "-j", "list"]
_NO_TABLE = re.compile("No such file or directory|not supported")

_SHOW_IPVS = ["modprobe", "--show-depends", "ip_vs"]
# How many changes of the IPVS table go to the kernel at once, and which ones may: ipvsadm's letters.
_AT_ONCE = 128
_TOGETHER = {"A": "additions", "a": "additions", "E": "edits", "e": "edits"}


class Router:
    """Chains and the IPVS table of the machine we run on, each only if asked for. Use it in a with statement.

    if_readable: more chains; they are left out of the state where iptables cannot print their table.
    adopting: the declared rules for which strays are looked for. nftables: our tables there, too.
    """

    def __init__(
        self,
        chains: Collection[ChainId],
        ipvs: bool,
        if_readable: Collection[ChainId] = (),
        adopting: Collection[MarkRule] = (),
        nftables: bool = False,
    ) -> None:
        self._chains = chains
        self._if_readable = if_readable
        self._adopting = adopting
        self._nftables = nftables
        self._ipvs = ipvs
        self._netlink = NetlinkSocket()

    def __enter__(self) -> Router:
        host.expect_root()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    def read(self) -> RouterState:
        """The state as it is. Reading changes nothing and loads no kernel module: what is not loaded is empty."""
        chains = {}
        for chain_id in self._if_readable:
            with suppress(ParseError):
                chains[chain_id] = read_chain(chain_id)
        if self._nftables:
            chains.update(read_nftables())
        chains.update((chain_id, read_chain(chain_id, self._adopting)) for chain_id in self._chains)
        return RouterState(chains, self._pools() if self._ipvs else {})

    def read_again(self, state: RouterState, operations: Iterable[Operation]) -> RouterState:
        """A state, but what the operations touched as it is now."""
        edited = {operation.id for operation in operations if isinstance(operation, ChainEdit)}
        by_iptables = (key for key in edited if key.tool == IPTABLES)
        chains = {key: read_chain(key, self._adopting if key in self._chains else ()) for key in by_iptables}
        if any(key.tool == NFTABLES for key in edited):
            chains.update(read_nftables())
        touched = {operation.service.id for operation in operations if isinstance(operation, IpvsOperation)}
        pools = {key: pool for key, pool in state.pools.items() if key not in touched}
        if touched:
            pools.update(self._pools(touched))
        return RouterState({**state.chains, **chains}, pools)

    def _pools(self, only: Collection[ServiceId] | None = None) -> dict[ServiceId, Pool]:
        """Virtual services with their real servers, as they were at one time.

        One that somebody removes between the two looks as if it had no real servers; then all is read again.
        """
        while True:
            pools = pools_of(self.entries(only))
            empty = {key for key, pool in pools.items() if not pool.real_servers}
            if not empty or empty <= {wire.decode_id(service) for service in self._services()}:
                return pools

    def _services(self) -> list[wire.Attributes]:
        found = self._netlink.dump(wire.CMD_GET_SERVICE) if self._netlink.family else []
        return [wire.nested(entry, wire.ATTR_SERVICE) for entry in found]

    def entries(self, only: Collection[ServiceId] | None = None) -> Iterator[Entry]:
        """Virtual services, all or only some, each with its real servers, as the kernel reports them."""
        for service in self._services():
            service_id = wire.decode_id(service)
            if only is None or service_id in only:
                yield service, self._real_servers(service_id)

    def _real_servers(self, service_id: ServiceId) -> list[wire.Attributes]:
        found = self._netlink.dump(wire.CMD_GET_DEST, wire.encode_id(service_id))
        return [wire.nested(entry, wire.ATTR_DEST) for entry in found]

    def timeouts(self) -> dict[str, int]:
        """The connection timeouts in seconds; nothing while ip_vs is not loaded."""
        return wire.decode_timeouts(self._netlink.get(wire.CMD_GET_CONFIG)) if self._netlink.family else {}

    def daemons(self) -> list[dict[str, object]]:
        """The running connection sync daemons."""
        found = self._netlink.dump(wire.CMD_GET_DAEMON) if self._netlink.family else []
        return [wire.decode_daemon(wire.nested(daemon, wire.ATTR_DAEMON)) for daemon in found]

    def foresee(self, operations: Collection[Operation]) -> None:
        """Raises LvsError if this kernel cannot have what the operations need of IPVS; loads nothing.

        What comes with packages is not missed: check mode also foretells the run that installs them.
        """
        self._refuse_beside_sync(operations)
        if self._lacks_ipvs(operations) and host.installed("modprobe"):
            status, _output, said = host.attempt(_SHOW_IPVS)
            if status:
                raise _no_ipvs(_SHOW_IPVS, status, said)
        _expect_loadable(operations)

    def prepare(self, operations: Collection[Operation]) -> None:
        """See to what the operations need, before the first of them changes anything.

        Loads ip_vs; the kernel itself loads schedulers when they are named. Raises LvsError for what is missing.
        """
        for tool in {_writer(operation.id) for operation in operations if isinstance(operation, ChainEdit)}:
            host.find(tool)
        self._refuse_beside_sync(operations)
        if self._lacks_ipvs(operations):
            loading = ["modprobe", "ip_vs"]
            status, _output, said = host.attempt(loading)
            if not self._netlink.find_family():
                raise _no_ipvs(loading, status, said)

    def _refuse_beside_sync(self, operations: Iterable[Operation]) -> None:
        """The kernel refuses real servers of the other family while a sync daemon runs, and says EINVAL."""
        mixed = [change for change in operations if isinstance(change, IpvsOperation) and _is_mixed(change)]
        running = [f"{daemon['state']} on {daemon['interface']}" for daemon in self.daemons()] if mixed else []
        if running:
            why = "no real server may be of the other family than its service while a sync daemon runs"
            raise LvsError(f"{ipvsadm.command_line(mixed[0])}: {why} ({', '.join(running)}); stop the daemon first")

    def _lacks_ipvs(self, operations: Iterable[Operation]) -> bool:
        return not self._netlink.family and any(isinstance(operation, IpvsOperation) for operation in operations)

    def write(self, operations: Sequence[Operation]) -> Iterator[int]:
        """Carry out operations in their order; after each step, how many more are done.

        Raises ToolError or KernelError, and then nothing of a later step was begun.
        """
        for step in _steps(operations):
            if isinstance(step[0], ChainEdit):
                self._write_chain(step[0])
                yield 1
            else:
                yield from self._write_ipvs([change for change in step if isinstance(change, IpvsOperation)])

    def _write_chain(self, edit: ChainEdit) -> None:
        if edit.id.tool == NFTABLES:
            host.run([_writer(edit.id), "-f", "-"], "".join(f"{line}\n" for line in edit.lines))
            return
        restore = [_writer(edit.id), "--noflush", "--wait", _XTABLES_WAIT]
        try:
            host.run(restore, transaction(edit.id.table, edit.lines))
        except ToolError as error:
            raise LvsError(f"{error}{_lacking(edit, str(error))}") from None

    def _write_ipvs(self, step: Sequence[IpvsOperation]) -> Iterator[int]:
        refused = self._netlink.request([(wire.COMMANDS[change.command], _payload(change)) for change in step])
        yield len(step) - len(refused)
        for place, code in refused.items():
            raise KernelError(ipvsadm.command_line(step[place]), code, _meaning(step[place], code))


def _is_mixed(change: IpvsOperation) -> bool:
    """Whether this adds or edits a real server of the other family than its service's."""
    server = change.real_server
    return server is not None and change.command in "ae" and family_of(server.address) != change.service.id.family


def _expect_loadable(operations: Iterable[Operation]) -> None:
    """Raises LvsError for schedulers and persistence engines that the kernel would not find when they are named.

    The kernel looks for them with modprobe. Where that does not even know ip_vs it cannot tell: IPVS may be built in,
    or the modules of the running kernel may be gone after an upgrade.
    """
    if not host.installed("modprobe"):
        return
    changes = (change for change in operations if isinstance(change, IpvsOperation) and change.command in "AE")
    naming = {module: (change, words) for change in changes for module, words in _modules_of(change.service).items()}
    missing = [module for module in sorted(naming) if not _available(module)]
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


def _steps(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Operations that are sent at once, although the kernel goes on after one that it refuses.

    That does no harm where they add or edit. What gives a mark or takes something away goes alone, once all before it
    is known to be done.
    """
    for together, group in groupby(operations, key=_together):
        while step := list(islice(group, _AT_ONCE if together else 1)):
            yield step


def _together(operation: Operation) -> str:
    return "" if isinstance(operation, ChainEdit) else _TOGETHER.get(operation.command, "")


def _writer(chain_id: ChainId) -> str:
    """The command that carries out a transaction on a chain of ours."""
    return "nft" if chain_id.tool == NFTABLES else f"{COMMAND[chain_id.family]}-restore"


def _lacking(edit: ChainEdit, said: str) -> str:
    """Of the kernel's modules that the rules take, those that are missing: iptables-restore says little of them."""
    if not _MODULE_MISSING.search(said) or not host.installed("modprobe"):
        return ""
    rules = "\n".join(edit.lines)
    missing = [module for words, module in _RULE_MODULES.items() if words in rules and not _available(module)]
    if not missing:
        return ""
    return f"\nmodprobe finds no {', '.join(missing)} for this kernel; on RHEL 10 look into kernel-modules-extra"


def _available(module: str) -> bool:
    return host.is_loaded(module) or not host.attempt(["modprobe", "--show-depends", module])[0]


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


def _pool(found: wire.Attributes, real_servers: Sequence[wire.Attributes]) -> Pool:
    service = wire.decode_service(found)
    servers = (wire.decode_real_server(real_server, service.id.family) for real_server in real_servers)
    return Pool(service, {server.id: server for server in servers})


def read_chain(chain_id: ChainId, adopting: Collection[MarkRule] = ()) -> Chain:
    saved = saved_table(chain_id.family, chain_id.table)
    chain = parse_chain(saved, chain_id)
    if not adopting:
        return chain
    return replace(chain, strays=strays(parse_table(saved, chain_id.family), chain_id, adopting))


def saved_table(family: str, table: str) -> str:
    """A table as iptables-save prints it; empty where it does not exist or iptables is not installed.

    Merely reading a table through iptables-legacy loads it into the kernel, so one that is not listed is not read.
    """
    tool = f"{COMMAND[family]}-save"
    if not _exists(family, table):
        return ""
    status, output, said = host.attempt([tool, "-t", table])
    if status == _UNREADABLE_STATUS:
        raise ParseError(f"{tool} -t {table}: exit status {status}: {unreadable(family, table)}: {said.strip()}")
    if status:
        raise ToolError([tool, "-t", table], status, said or output)
    if _uses_nft(tool) and any(is_native(rule, family) for rule in nft_rules(family, table)):
        raise ParseError(f"{tool} -t {table}: {unreadable(family, table)}")
    return output


def read_nftables() -> dict[ChainId, Chain]:
    """Our tables of nftables; none where there is no nft."""
    readable = host.installed("nft") and _has_nf_tables()
    return {
        chain_id: parse_listing(_listed(chain_id.family) if readable else "", chain_id.family)
        for chain_id in nftables_chains()
    }


def native_hooks(printed: Mapping[str, Iterable[str]]) -> tuple[dict[str, list[Hook]], list[str]]:
    """The hooks of native nftables tables by family, and what of them could not be read.

    printed are the tables that iptables prints, by nft's family.
    """
    found: dict[str, list[Hook]] = {family: [] for family in FAMILIES}
    if not host.installed("nft"):
        return found, ["native nftables rules (nft is not installed)"] if host.is_loaded("nf_tables") else []
    unread = []
    try:
        tables = native_tables(host.run([*_LISTING, "chains"]), printed) if _has_nf_tables() else []
    except LvsError as error:
        return found, [f"native nftables rules ({error})"]
    for family, name in tables:
        table = ["table", family, name]
        try:
            hooks = native_table_hooks(host.run([*_LISTING, *table]), host.run(["nft", "-a", "list", *table]))
            for key, more in hooks.items():
                found[key] += more
        except LvsError as error:
            unread.append(f"nftables table {family} {name} ({error})")
    return found, unread


def _has_nf_tables() -> bool:
    """Whether nft can be asked without loading nf_tables: it is loaded, or built in, or not to be had at all."""
    if host.is_loaded("nf_tables") or not host.installed("modprobe"):
        return True
    _status, output, _said = host.attempt(["modprobe", "--show-depends", "nf_tables"])
    return all(line.startswith("builtin ") for line in output.splitlines())


def _listed(family: str) -> str:
    """Our table as nft prints it in JSON; empty where there is none."""
    listing = ["nft", "-j", "list", "table", *table_words(family).split()]
    status, output, said = host.attempt(listing)
    if status and _NO_TABLE.search(said):
        return ""
    if status:
        raise ToolError(listing, status, said or output)
    return output


def saved_ruleset(family: str) -> str:
    """All tables that there are, as far as iptables-save prints them: it stops where it meets a native nft rule."""
    return _saved(f"{COMMAND[family]}-save") if _exists(family) else ""


def _saved(tool: str) -> str:
    """What the legacy variant does not print is not there; so it raises ToolError where that fails."""
    status, output, said = host.attempt([tool])
    if status and not _uses_nft(tool):
        raise ToolError([tool], status, said or output)
    return output


def mixed_tables(family: str, tables: Iterable[str]) -> list[str]:
    """Of the tables that iptables prints those with a native rule, which it leaves out, or prints as another one."""
    if not _uses_nft(f"{COMMAND[family]}-save"):
        return []
    return [table for table in tables if any(is_native(rule, family) for rule in nft_rules(family, table))]


def saved_other_ruleset(family: str) -> tuple[str, str]:
    """All tables of the other variant of iptables, and the variant's name; the kernel heeds both. Loads neither."""
    in_use = f"{COMMAND[family]}-save"
    variant = "legacy" if not host.installed(in_use) or _uses_nft(in_use) else "nft"
    tool = f"{COMMAND[family]}-{variant}-save"
    if not host.installed(tool):
        return variant, ""
    there = host.read_text(_LEGACY_TABLES[family]).split() if variant == "legacy" else _has_nf_tables()
    return variant, _saved(tool) if there else ""


def _exists(family: str, table: str = "") -> bool:
    """Whether there is a table to be read, any at all if none is named."""
    tool = f"{COMMAND[family]}-save"
    if not host.installed(tool) or _uses_nft(tool):
        return bool(host.installed(tool))
    loaded = host.read_text(_LEGACY_TABLES[family]).split()
    return table in loaded if table else bool(loaded)


def _uses_nft(tool: str) -> bool:
    """Whether this iptables is the variant that keeps its rules in nf_tables."""
    return "nft" in host.installed(tool)


def ways_to(destinations: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Where this machine sends packets for addresses, each with a mark: "local", or the table that has their route.

    The router's own answer counts: it owns the address, or a route (perhaps one for the mark) says local. What it has
    no route for is left out.
    """
    asked = list(destinations)
    answers = _routes(f"route get {address} mark {fwmark}\n" for address, fwmark in asked)
    return {key: _way(words) for key, words in zip(asked, answers) if words}


def devices_to(addresses: Iterable[str]) -> dict[str, str]:
    """The interface by which this machine reaches each address that it has a route to."""
    asked = list(addresses)
    answers = zip(asked, _routes(f"route get {address}\n" for address in asked))
    return {address: words[words.index("dev") + 1] for address, words in answers if "dev" in words[:-1]}


def _routes(lines: Iterable[str]) -> list[list[str]]:
    """For each request the first line of ip's answer, in words; none where there is no route."""
    asked = list(lines)
    if not asked:
        return []
    # An address without any route makes ip fail; -force has it go on with the next one.
    _status, output, said = host.attempt(["ip", "-force", "-batch", "-"], "".join(asked))
    failed = {int(number) for number in re.findall(r"^Command failed -:(\d+)$", said, re.MULTILINE)}
    answers = iter([line.split() for line in output.splitlines() if line[:1].strip()])
    return [[] if number in failed else next(answers, []) for number in range(1, len(asked) + 1)]


def _way(words: Sequence[str]) -> str:
    """Of "local 192.0.2.10 dev lo src 192.0.2.10" or "192.0.2.10 via 10.0.0.1 dev eth0 table 100 src 10.0.0.2"."""
    if words[0] == "local":
        return "local"
    return words[words.index("table") + 1] if "table" in words[:-1] else "main"
