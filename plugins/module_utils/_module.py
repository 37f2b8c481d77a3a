# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible's class for modules. PRIVATE to the collection: the only place here that knows Ansible."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule


class Module(AnsibleModule):  # type: ignore[misc] # Ansible has no type hints
    """A module that logs its options whatever text they have."""

    def log(self, msg: str, log_args: dict[str, Any] | None = None) -> None:
        """Log a line; Ansible logs all options like this before the module sees them.

        From Python 3.12 on syslog takes no NUL, and Ansible would end the module with what Python says of that, before
        the module can tell which option has it.
        """
        super().log(msg.replace("\0", r"\0"), log_args)
