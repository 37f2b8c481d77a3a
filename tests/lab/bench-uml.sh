#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
#
# First process of the bench's kernel. The root is the machine's own file system (hostfs), so whatever is
# written outside of the mounts made here is written on the machine itself.
state=$1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
# The kernel has put a devtmpfs on /dev.
mkdir /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
mkdir /run/netns

# modprobe, the kernel's own calls of it included, finds the modules where it always looks.
mkdir -p /lib/modules
mount -t tmpfs -o mode=755 tmpfs /lib/modules
ln -s "/usr/lib/uml/modules/$(uname -r)" /lib/modules/

mount --bind "$state/alternatives" /etc/alternatives
hostname bench
# Or each network namespace made after a test of tunnels would have a tunl0, which is an interface like any other.
echo 1 >/proc/sys/net/core/fb_tunnels_only_for_init_net
# Loaded on any usual machine; loopback has ::1 only when it comes up after that.
modprobe ipv6
ip link set lo up

# Plain files carry the output: hostfs writes through at once, and unlike a console they are no terminal.
"$state/command" </dev/null >"$state/stdout" 2>"$state/stderr"
echo $? >"$state/status"
sync
echo o >/proc/sysrq-trigger
# Power-off happens a moment later; the kernel would panic if this process were gone by then.
sleep 60
