# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests need: modules and whole states on the fake kernel."""

from __future__ import annotations

import gc
import io
import json
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils import basic
from ansible.module_utils.common import warnings
from ansible.module_utils.common.parameters import PASS_VARS

from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.wire import encode_id, encode_real_server, encode_service
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import mark_chains, record_chains, snat_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_records import edit_records, record_table
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nftables import table_lines, table_words
from ansible_collections.lvs.fleet.plugins.module_utils._model import NFTABLES, Chain, ChainId, RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule

CHAIN = "LVS-MARK"
MARKS, MARKS6 = mark_chains()
# Since 2.21 the controller has to ask for the invocation, as it does with -vvv; older ones refuse to be asked.
_INVOCATION = {"_ansible_inject_invocation": True} if "inject_invocation" in PASS_VARS else {}
CHAINS = (*snat_chains(), *record_chains(), MARKS, MARKS6)


def run_module(module: ModuleType, kernel: FakeKernel, check: bool = False, **options: Any) -> dict[str, Any]:
    """The answer of a module that runs on the kernel; in check mode the kernel takes no write."""
    kernel.read_only = check
    with _on_router(), kernel.running():
        answer = answer_of(module, check, **options)
    kernel.read_only = False
    assert all(sock.closed for sock in kernel.sockets)
    if "warnings" in answer:
        # Newer versions of Ansible send more than the text.
        answer["warnings"] = [told if isinstance(told, str) else told["event"]["msg"] for told in answer["warnings"]]
    return answer


def answer_of(module: ModuleType, check: bool, **options: Any) -> dict[str, Any]:
    """What a module prints, without its invocation."""
    arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True, **_INVOCATION}
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    # Of all modules in this process.
    warnings._global_warnings.clear()
    # Newer versions of Ansible look for what is below the text.
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(output), pytest.raises(SystemExit):
        module.main()
    gc.enable()
    output.seek(0)
    answer: dict[str, Any] = json.loads(output.read())
    assert answer.pop("invocation")["module_args"].keys() >= options.keys()
    return answer


def _on_router() -> AbstractContextManager[Any]:
    """What imports a filter makes this process a controller, which shows warnings instead of returning them.

    Ansible before 2.19 has no such difference.
    """
    if find_spec("ansible.module_utils._internal"):
        return patch("ansible.module_utils._internal.is_controller", False)
    return nullcontext()


def quartet(module: ModuleType, kernel: FakeKernel, **options: Any) -> dict[str, Any]:
    """Check, run, check, run: check mode tells what the run does, and the second run does nothing."""
    before = kernel.snapshot()
    told = run_module(module, kernel, check=True, **options)
    assert kernel.snapshot() == before
    done = run_module(module, kernel, **options)
    assert told == done
    after = kernel.snapshot()
    for check in (True, False):
        again = run_module(module, kernel, check=check, **options)
        again.pop("warnings", None)
        diff = {"before": done["diff"]["after"], "after": done["diff"]["after"]}
        assert again == {"changed": False, "operations": [], "changes": [], "diff": diff}
    assert kernel.snapshot() == after
    assert done["changed"] == bool(done["operations"])
    return done


def to_adopt(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What lvs_info tells, as the services to declare."""
    return [*told["adoptable"]["before"], *told["services"], *told["adoptable"]["behind"]]


def kernel_with(state: RouterState) -> FakeKernel:
    """A kernel in this state."""
    kernel = FakeKernel()
    for key, content in state.chains.items():
        if key.tool == NFTABLES:
            kernel.nft.run("\n".join(_table(key, content)))
            continue
        chains = getattr(kernel, key.table)[key.family].chains
        if not key.has_records:
            chains[key.hook] += [Rule("-p tcp -j CONNMARK --restore-mark"), Rule("-s 10.1.1.1/32 -j RETURN")]
        if content.exists:
            if content.jumps:
                chains[key.hook] += [Rule(f"-j {key.name}")] * content.jumps
            chains["OUTPUT"] += [Rule(f"-p udp -j {key.name}") for _number in range(content.references)]
            chains[key.name] = [Rule(rule.text) for rule in content.rules]
    for pool in state.pools.values():
        assert kernel.ipvs.request(1, encode_service(pool.service)) == 0
        for server in pool.real_servers.values():
            assert kernel.ipvs.request(5, encode_id(pool.service.id) + encode_real_server(server)) == 0
    return kernel


def _table(key: ChainId, content: Chain) -> list[str]:
    """The commands that make a table of nftables, with something of somebody else for a reference."""
    if not content.exists:
        return []
    if key.has_records:
        lines = [line for edit in edit_records(key, Chain(), content) for line in edit.lines]
        other = [f"add set {record_table(key.family)} other {{ type mark; }}"] * content.references
        return [*lines, *other]
    other = [f"add set {table_words(key.family)} other {{ type mark; }}"] * content.references
    return [*table_lines(key.family, content), *other]


def read(kernel: FakeKernel) -> RouterState:
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:
        return router.read()
