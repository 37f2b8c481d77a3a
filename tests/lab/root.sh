#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
#
# root.sh ROOT FOLDER PLACE COMMAND...: run COMMAND in ROOT, with the machine's FOLDER at PLACE in it.
# The first process in a mount and a process namespace of its own. It stays, as it is the one to bury orphans.
set -e
root=$1
# To itself, because in a chroot what is no mount point cannot be unshared once more, as the fleet does.
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -m 1777 "$root/run/lock"
mkdir "$3"
mount --bind "$2" "$3"
shift 3
chroot "$root" "$@"
