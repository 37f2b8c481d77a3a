#!/bin/sh
# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# All that the role may have set, by the stock tools. Devices that the kernel makes with a module stay with it.
exec 2>/dev/null
ip -oneline address show | sed -e 's/ valid_lft .*//' -e 's/^[0-9]*: //' -e 's/\\//'
ip link show | grep -o 'lvs-[a-z0-9]*'
ip rule show
ip -6 rule show
ip route show
ip -6 route show | sed 's/ expires .*//'
ip route show table 110
ip -6 route show table 110
ip fou show
sysctl net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.conf.all.rp_filter
sysctl net.ipv4.conf.all.accept_redirects net.ipv4.conf.eth0.accept_redirects
sysctl net.ipv6.conf.all.accept_redirects net.ipv6.conf.eth0.accept_redirects
iptables-save -t mangle | grep LVS
ip6tables-save -t mangle | grep LVS
find /etc/lvs /etc/sysctl.d /etc/modules-load.d /etc/systemd/system | sort
true
