#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
#
# Usage: machine.sh ARGUMENT...
# Run a user-mode-linux machine with these arguments until it powers off; start it anew when it reboots.
#
# To reboot, such a kernel executes its own first argument (argv[0]) again, but in a process that is cluttered
# with what the old kernel left open, and hangs. So argv[0] is this very script in its second role: exit at once
# with a status that means reboot. The process namespace ends with its first process, the kernel, and takes the
# kernel's helpers along, which would otherwise keep disk and network device busy.
reboot_status=75
[[ $LAB_MACHINE_REBOOTS ]] && exit $reboot_status
export LAB_MACHINE_REBOOTS=yes

while :; do
    # shellcheck disable=SC2016 # expanded by the inner shell
    setpriv --pdeathsig KILL unshare --pid --fork --kill-child \
        bash -c 'exec -a "$0" linux.uml "$@"' "$0" "$@" </dev/null
    status=$?
    echo "[kernel ended with status $status]"
    [[ $status == "$reboot_status" ]] || exit "$status"
done
