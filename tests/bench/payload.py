# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules as Ansible ships them to a router: each one file with all that it imports, and its arguments.

A program of its own, because Ansible finds collections by itself only where they have not been imported otherwise.
Standard input has a JSON list of modules, options and the paths of the files to be written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, module_loader
from ansible.template import Templar

INTERPRETER = "/usr/bin/python3"


def payload(module: str, options: dict[str, Any]) -> bytes:
    """The file that Ansible would run with the interpreter of the router."""
    built = modify_module(
        module_name=module,
        module_path=module_loader.find_plugin_with_context(module).plugin_resolved_path,
        module_args=options,
        templar=Templar(DataLoader()),
        task_vars={"ansible_python_interpreter": INTERPRETER},
        module_compression="ZIP_DEFLATED",
    )
    return bytes(built.b_module_data)


if __name__ == "__main__":
    init_plugin_loader()
    for module, options, path in json.load(sys.stdin):
        Path(path).write_bytes(payload(module, options))
