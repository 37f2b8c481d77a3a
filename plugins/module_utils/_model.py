# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection talks about, as values. PRIVATE to the collection.

Every value is canonical by construction (addresses as Python's ipaddress prints them, ports sorted, settings without
effect at their defaults), so that equality is the idempotence check. What there are tens of thousands of is a tuple:
Python makes and compares these several times as fast as dataclasses. Nothing here does I/O or knows Ansible.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Mapping, NamedTuple, Tuple, Union

IPV4 = "ipv4"
IPV6 = "ipv6"
FAMILIES = (IPV4, IPV6)
FAMILY_WORDS = {IPV4: "IPv4", IPV6: "IPv6"}
FULL_NETMASK = {IPV4: 32, IPV6: 128}
EVERYWHERE = {IPV4: "0.0.0.0/0", IPV6: "::/0"}
FULL_MASK = 0xFFFFFFFF
# The tools that give packets their marks.
IPTABLES = "iptables"
NFTABLES = "nftables"
MARKINGS = (IPTABLES, NFTABLES)
# The modules that write MARK rules. They share a chain, and each manages its own rules in it.
LVS_SERVICE = "lvs_service"
IPTABLES_MARK = "iptables_mark"

# (low, high), both included; a single port is (80, 80).
PortRange = Tuple[int, int]
# What tells the real servers of one virtual service apart: address and port.
RealServerId = Tuple[str, int]


def family_of(address: str) -> str:
    """The family of a canonical address or network."""
    return IPV6 if ":" in address else IPV4


class ServiceId(NamedTuple):
    """What identifies a virtual service in the kernel: family and mark, or protocol, address and port.

    Port 0 stands for every port of the address.
    """

    family: str
    fwmark: int = 0
    protocol: str = ""
    address: str = ""
    port: int = 0


@dataclass(frozen=True)
class MarkRule:
    """One MARK rule as this collection writes it: what matches, and the mark it gets.

    exclude_mac: MAC addresses, sorted; packets from these machines do not match, nor does what came by no Ethernet.
    """

    name: str
    mark: int
    destination: str
    protocol: str = ""
    ports: tuple[PortRange, ...] = ()
    source: str = ""
    in_interface: str = ""
    mask: int = FULL_MASK
    owner: str = LVS_SERVICE
    exclude_mac: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return family_of(self.destination)

    @property
    def service(self) -> ServiceId:
        """The service that balances its packets."""
        return ServiceId(self.family, self.mark)


@dataclass(frozen=True)
class SnatRule:
    """A rule that makes a real server's own connections from one port come from the virtual address."""

    name: str
    source: str
    port: int
    address: str

    @property
    def family(self) -> str:
        return family_of(self.source)


@dataclass(frozen=True)
class ServiceRecord:
    """Says whose a service by address is. Nothing gives its packets a mark, so the kernel has no other word on it.

    It stands where no packet comes to.
    """

    name: str
    service: ServiceId

    @property
    def family(self) -> str:
        return self.service.family

    @property
    def destination(self) -> str:
        """The address as a network."""
        return f"{self.service.address}/{FULL_NETMASK[self.family]}"

    @property
    def protocol(self) -> str:
        return self.service.protocol

    @property
    def ports(self) -> tuple[PortRange, ...]:
        """As those of a MARK rule: none are all."""
        return ((self.service.port, self.service.port),) if self.service.port else ()

    def as_rule(self) -> MarkRule:
        """The traffic of the service as that of a rule, which gives no mark."""
        return MarkRule(self.name, 0, self.destination, self.protocol, self.ports)


# What a service sees of packets.
Traffic = Union[MarkRule, ServiceRecord]


@dataclass(frozen=True)
class ChainRule:
    """One rule of a chain of ours, whoever wrote it.

    text is what iptables-save prints behind "-A CHAIN "; meaning is a MARK rule or a record as a value, or the text
    itself for a rule of another kind or one that this collection would not write; name comes from the comment lvs:NAME
    and is empty for somebody else's rule; mark is 0 if it sets none; owner is the module that wrote it, if it has a
    name.
    """

    text: str = field(compare=False)
    meaning: MarkRule | ServiceRecord | str
    name: str = ""
    mark: int = 0
    owner: str = LVS_SERVICE

    def service_id(self, family: str) -> ServiceId | None:
        """The service of its packets: by the mark that it gives, or by the address that it is the record of."""
        if isinstance(self.meaning, ServiceRecord):
            return self.meaning.service
        return ServiceId(family, self.mark) if self.mark else None


@dataclass(frozen=True)
class TableRule:
    """Any rule of a table, with what can be known of it.

    seen is its traffic, with its mark and mask if it gives one; exact says whether it sees just that, or less for a
    reason that we have no words for. asks is the mark that a packet must have, its mask, and whether it must not.
    """

    chain: str
    position: int
    text: str
    target: str
    seen: MarkRule
    exact: bool
    asks: tuple[int, int, bool] = (0, 0, False)

    @property
    def marks(self) -> bool:
        return self.target == "MARK"


@dataclass(frozen=True)
class ChainId:
    """Which of our chains: its family, its table, the built-in chain that leads into it (the hook), and its name.

    Nothing leads into the chain of records: it has no hook. With nftables the whole table is ours, and its maps and
    sets count as rules of the chain.
    """

    family: str
    table: str
    hook: str
    name: str
    tool: str = IPTABLES

    @property
    def has_records(self) -> bool:
        """Whether it is the place of the records of services by address."""
        return not self.hook


@dataclass(frozen=True)
class Stray:
    """A MARK rule in the hook itself that does nothing but what declared ones do: adoption takes it over.

    It stands at its place, from 1, perhaps behind our jump. obstacle is a rule between it and the jump because of which
    it is not the same whether the mark is given here or there.
    """

    text: str
    rule: MarkRule = field(compare=False)
    place: int = field(compare=False)
    behind: bool = field(default=False, compare=False)
    obstacle: str = field(default="", compare=False)


@dataclass(frozen=True)
class Chain:
    """One of our chains as it is in the kernel.

    jumps counts the unconditional jumps from its hook; references counts all other rules that lead into the chain
    (while there are any, the kernel does not let go of the chain). strays are looked for only where they are adopted.
    entries is what packets meet where that is not the rules themselves: with nftables these are what was declared.
    Where the jumps are, how many rules the hook has, and which commands take out of the way what keeps our table from
    being ours, is how the chain was found, and not part of what it is.
    """

    exists: bool = False
    rules: tuple[ChainRule, ...] = ()
    jumps: int = 0
    references: int = 0
    strays: tuple[Stray, ...] = ()
    entries: tuple[ChainRule, ...] = ()
    jump_places: tuple[int, ...] = field(default=(), compare=False)
    hook_length: int = field(default=0, compare=False)
    in_the_way: tuple[str, ...] = field(default=(), compare=False)

    def with_records(self, records: tuple[ChainRule, ...]) -> Chain:
        """The chain of records as it should be with these: no remains if there are none."""
        return replace(self, exists=bool(records) or self.references > 0, rules=records)

    def with_rules(self, rules: tuple[ChainRule, ...], entries: tuple[ChainRule, ...] = ()) -> Chain:
        """The chain as it should be with these rules: one jump if there are any, no remains if there are none.

        A jump that is not there yet takes the place that the last stray leaves: the order to the rules of others stays.
        """
        if rules:
            places = self.jump_places[-1:] or tuple(last.place - len(self.strays) + 1 for last in self.strays[-1:])
            return replace(self, exists=True, rules=rules, entries=entries, jumps=1, jump_places=places, in_the_way=())
        return replace(self, exists=self.references > 0, rules=(), entries=(), jumps=0, in_the_way=())


class RealServer(NamedTuple):
    """A real server of one virtual service (the kernel's destination). Port 0 keeps the packet's own port."""

    address: str
    port: int = 0
    weight: int = 1
    forward_method: str = "direct"
    upper_threshold: int = 0
    lower_threshold: int = 0
    tunnel_type: str = ""
    tunnel_port: int = 0
    tunnel_checksum: str = ""

    @property
    def id(self) -> RealServerId:
        return (self.address, self.port)


class VirtualService(NamedTuple):
    """A virtual service of the kernel with its settings.

    persistence_netmask is a prefix length; somebody else's IPv4 mask that is none is text, as in "0.255.255.255".
    """

    id: ServiceId
    scheduler: str = "wlc"
    scheduler_flags: tuple[str, ...] = ()
    persistence_timeout: int = 0
    persistence_netmask: int | str = 0
    persistence_engine: str = ""
    one_packet: bool = False


@dataclass(frozen=True)
class Pool:
    """A virtual service together with its real servers."""

    service: VirtualService
    real_servers: Mapping[RealServerId, RealServer] = field(default_factory=dict)


@dataclass(frozen=True)
class RouterState:
    """All that the collection manages on one LVS router, as read or as wanted."""

    chains: Mapping[ChainId, Chain] = field(default_factory=dict)
    pools: Mapping[ServiceId, Pool] = field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """What the input asks for. names: the labels it speaks of; rules in their order; ids: the services it speaks of.

    records: those of its services by address, in their order.

    owner is the module that was asked; marking the tool that has the MARK rules; adopt says whether to take rules over.
    """

    names: tuple[str, ...] = ()
    rules: tuple[MarkRule, ...] = ()
    snat_rules: tuple[SnatRule, ...] = ()
    pools: Mapping[ServiceId, Pool] = field(default_factory=dict)
    ids: tuple[ServiceId, ...] = ()
    owner: str = LVS_SERVICE
    marking: str = IPTABLES
    adopt: bool = False
    records: tuple[ServiceRecord, ...] = ()

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """What all of its services see of packets."""
        return (*self.rules, *self.records)


class IpvsOperation(NamedTuple):
    """One change of the IPVS table. command is ipvsadm's own letter: A E D for services, a e d for real servers."""

    command: str
    service: VirtualService
    real_server: RealServer | None = None


@dataclass(frozen=True)
class ChainEdit:
    """One transaction of iptables-restore --noflush or nft: its lines, and the chain as it is afterwards."""

    id: ChainId
    lines: tuple[str, ...]
    after: Chain


Operation = Union[IpvsOperation, ChainEdit]

# Names of the kernel's scheduler flag bits, first to third. Two schedulers give them names of their own.
GENERIC_FLAGS = ("flag-1", "flag-2", "flag-3")
NAMED_FLAGS: dict[str, tuple[str, str, str]] = {
    "sh": ("sh-fallback", "sh-port", "flag-3"),
    "mh": ("mh-fallback", "mh-port", "flag-3"),
}


def flag_names(scheduler: str) -> tuple[str, str, str]:
    """The names of the three flag bits for this scheduler, as ipvsadm prints them."""
    return NAMED_FLAGS.get(scheduler, GENERIC_FLAGS)
