#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
#
# Usage: machine.sh LIBRARIES KERNEL ARGUMENT...
# Run a user-mode-linux machine with these arguments until it powers off; start it anew when it reboots.
#
# The kernel is a program of the machine's release, and this machine's C library may be too old for it. Then it gets that
# of its release, from LIBRARIES: all of it at once, as its parts do not fit with those of another version, and where
# this machine has its own, as the kernel has no path of its own to it.
#
# To reboot, such a kernel executes its own first argument (argv[0]) again, but in a process that is cluttered
# with what the old kernel left open, and hangs. So argv[0] is this very script in its second role: exit at once
# with a status that means reboot. The process namespace ends with its first process, the kernel, and takes the
# kernel's helpers along, which would otherwise keep disk and network device busy.
reboot_status=75
[[ $LAB_MACHINE_REBOOTS ]] && exit $reboot_status
export LAB_MACHINE_REBOOTS=yes

libraries=$1
shift

# shellcheck disable=SC2016 # expanded by the inner shell
start='
    if ! "$2" --version >/dev/null 2>&1; then
        mount -t overlay -o "lowerdir=$1:/usr/lib/x86_64-linux-gnu" libraries /usr/lib/x86_64-linux-gnu || exit
    fi
    shift
    exec -a "$0" "$@"
'

while :; do
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child \
        bash -c "$start" "$0" "$libraries" "$@" </dev/null
    status=$?
    echo "[kernel ended with status $status]"
    [[ $status == "$reboot_status" ]] || exit "$status"
done
