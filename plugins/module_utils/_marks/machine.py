# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of the machine we run on: chains of iptables, tables of nftables. PRIVATE to the collection."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from dataclasses import replace
from typing import Collection, Iterable

from .. import _host as host
from .._errors import LvsError, ParseError, ToolError
from .._model import IPV4, IPV6, NFTABLES, Chain, ChainEdit, ChainId, MarkRule
from .._netlink.machine import NETLINK_NETFILTER, Socket
from .._netlink.messages import NLM_F_DUMP, Attributes, DumpInterrupted, generic_attributes
from . import nft_wire
from .foreign import strays
from .iptables import COMMAND, parse_chain, parse_table, transaction, unreadable
from .nft_listing import parse_listing
from .nft_records import nft_record_chains, parse_records
from .nft_wire import is_native
from .nftables import NFT_FAMILY, nftables_chains

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
_NO_TABLE = re.compile("No such file or directory|not supported")
# How often the rules of a table are asked for that change while the kernel gives them out.
_ATTEMPTS = 20


def read_chains(chain_ids: Iterable[ChainId], adopting: Collection[MarkRule] = ()) -> dict[ChainId, Chain]:
    """Chains of iptables, each table read once."""
    wanted = list(chain_ids)
    saved = {(key.family, key.table): "" for key in wanted}
    saved = {(family, table): saved_table(family, table) for family, table in saved}
    return {key: _chain(saved[key.family, key.table], key, adopting) for key in wanted}


def _chain(saved: str, chain_id: ChainId, adopting: Collection[MarkRule]) -> Chain:
    chain = parse_chain(saved, chain_id)
    if not adopting or chain_id.has_records:
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
    if uses_nft(tool) and any(is_native(rule, family) for rule in nft_rules(family, table)):
        raise ParseError(f"{tool} -t {table}: {unreadable(family, table)}")
    return output


def saved_ruleset(family: str) -> str:
    """All tables that there are, as far as iptables-save prints them: it stops where it meets a native nft rule."""
    return _saved(f"{COMMAND[family]}-save") if _exists(family) else ""


def _saved(tool: str) -> str:
    """What the legacy variant does not print is not there; so it raises ToolError where that fails."""
    status, output, said = host.attempt([tool])
    if status and not uses_nft(tool):
        raise ToolError([tool], status, said or output)
    return output


def mixed_tables(family: str, tables: Iterable[str]) -> list[str]:
    """Of the tables that iptables prints those with a native rule, which it leaves out, or prints as another one."""
    if not uses_nft(f"{COMMAND[family]}-save"):
        return []
    return [table for table in tables if any(is_native(rule, family) for rule in nft_rules(family, table))]


def saved_other_ruleset(family: str) -> tuple[str, str]:
    """All tables of the other variant of iptables, and the variant's name; the kernel heeds both. Loads neither."""
    in_use = f"{COMMAND[family]}-save"
    variant = "legacy" if not host.installed(in_use) or uses_nft(in_use) else "nft"
    tool = f"{COMMAND[family]}-{variant}-save"
    if not host.installed(tool):
        return variant, ""
    there = host.read_text(_LEGACY_TABLES[family]).split() if variant == "legacy" else has_nf_tables()
    return variant, _saved(tool) if there else ""


def uses_nft(tool: str) -> bool:
    """Whether this iptables is the variant that keeps its rules in nf_tables."""
    return "nft" in host.installed(tool)


def _exists(family: str, table: str = "") -> bool:
    """Whether there is a table to be read, any at all if none is named."""
    tool = f"{COMMAND[family]}-save"
    if not host.installed(tool) or uses_nft(tool):
        return bool(host.installed(tool))
    loaded = host.read_text(_LEGACY_TABLES[family]).split()
    return table in loaded if table else bool(loaded)


def read_nftables() -> dict[ChainId, Chain]:
    """Our tables of nftables, those of records first; none where there is no nf_tables."""
    readable = host.installed("nft") and has_nf_tables()
    return {
        chain_id: (parse_records if chain_id.has_records else parse_listing)(
            _listed(chain_id) if readable else "", chain_id.family
        )
        for chain_id in (*nft_record_chains(), *nftables_chains())
    }


def has_nf_tables() -> bool:
    """Whether nft can be asked without loading nf_tables: it is loaded, or built in, or not to be had at all."""
    if host.is_loaded("nf_tables") or not host.installed("modprobe"):
        return True
    _status, output, _said = host.attempt(["modprobe", "--show-depends", "nf_tables"])
    return all(line.startswith("builtin ") for line in output.splitlines())


def _listed(chain_id: ChainId) -> str:
    """Our table as nft prints it in JSON; empty where there is none."""
    listing = ["nft", "-j", "list", "table", NFT_FAMILY[chain_id.family], chain_id.table]
    status, output, said = host.attempt(listing)
    if status and _NO_TABLE.search(said):
        return ""
    if status:
        raise ToolError(listing, status, said or output)
    return output


def nft_rules(family: str, table: str) -> list[Attributes]:
    """The rules of one table of nf_tables, none where there is no such table."""
    for _attempt in range(_ATTEMPTS):
        with suppress(DumpInterrupted), closing(Socket(NETLINK_NETFILTER, nft_wire.VERSION, "nf_tables")) as asking:
            replies = asking.replies(nft_wire.GET_RULE, NLM_F_DUMP, nft_wire.NFPROTO[family], nft_wire.rules_of(table))
            return [generic_attributes(body) for body in replies]
    raise ParseError(f"nf_tables: the rules of table {table} changed {_ATTEMPTS} times while they were read")


def writer(chain_id: ChainId) -> str:
    """The command that carries out a transaction on a chain of ours."""
    return "nft" if chain_id.tool == NFTABLES else f"{COMMAND[chain_id.family]}-restore"


def write(edit: ChainEdit) -> None:
    """Carry out one transaction. Raises LvsError."""
    if edit.id.tool == NFTABLES:
        host.run([writer(edit.id), "-f", "-"], "".join(f"{line}\n" for line in edit.lines))
        return
    restore = [writer(edit.id), "--noflush", "--wait", _XTABLES_WAIT]
    try:
        host.run(restore, transaction(edit.id.table, edit.lines))
    except ToolError as error:
        raise LvsError(f"{error}{_lacking(edit, str(error))}") from None


def _lacking(edit: ChainEdit, said: str) -> str:
    """Of the kernel's modules that the rules take, those that are missing: iptables-restore says little of them."""
    if not _MODULE_MISSING.search(said) or not host.installed("modprobe"):
        return ""
    rules = "\n".join(edit.lines)
    missing = [module for words, module in _RULE_MODULES.items() if words in rules and not host.is_loadable(module)]
    if not missing:
        return ""
    return f"\nmodprobe finds no {', '.join(missing)} for this kernel; on RHEL 10 look into kernel-modules-extra"
