#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
#
# First process of a bench on the machine's own kernel, in network, mount and process namespaces of its own.
# The machine's /sys shows another network namespace, and its /run/netns the machine's namespaces: hide both.
set -e
mount -t sysfs sysfs /sys
mkdir -p /run/netns
mount -t tmpfs -o mode=755 tmpfs /run/netns
ip link set lo up
"$1"
