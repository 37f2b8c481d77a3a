# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests need: modules and whole states on the fake kernel."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import basic

from ansible_collections.lvs.fleet.plugins.module_utils._model import RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router
from ansible_collections.lvs.fleet.plugins.module_utils._wire import encode_id, encode_real_server, encode_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule

CHAIN = "LVS-MARK"


def run_module(module: ModuleType, kernel: FakeKernel, check: bool = False, **options: Any) -> dict[str, Any]:
    """The answer of a module that runs on the kernel; in check mode the kernel takes no write."""
    arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    output = io.StringIO()
    kernel.read_only = check
    with kernel.running(), redirect_stdout(output), pytest.raises(SystemExit):
        module.main()
    kernel.read_only = False
    assert all(sock.closed for sock in kernel.sockets)
    answer: dict[str, Any] = json.loads(output.getvalue())
    del answer["invocation"]
    return answer


def kernel_with(state: RouterState, chain: str = CHAIN) -> FakeKernel:
    """A kernel in this state."""
    kernel = FakeKernel()
    for family, content in state.marks.items():
        chains = kernel.mangle[family].chains
        chains["PREROUTING"] += [Rule("-p tcp -j CONNMARK --restore-mark"), Rule("-s 10.1.1.1/32 -j RETURN")]
        if content.exists:
            chains["PREROUTING"] += [Rule(f"-j {chain}")] * content.jumps
            chains["OUTPUT"] += [Rule(f"-p udp -j {chain}") for _number in range(content.references)]
            chains[chain] = [Rule(rule.text) for rule in content.rules]
    for pool in state.pools.values():
        assert kernel.ipvs.request(1, encode_service(pool.service)) == 0
        for server in pool.real_servers.values():
            assert kernel.ipvs.request(5, encode_id(pool.service.id) + encode_real_server(server)) == 0
    return kernel


def read(kernel: FakeKernel, chain: str = CHAIN) -> RouterState:
    with kernel.running(), Router(chain) as router:
        return router.read()
