# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Command line of the lab."""

from __future__ import annotations

import argparse
from pathlib import Path

import fleet
from bench import EXIT_BROKEN_PIPE, EXIT_NO_BENCH, run_bench
from common import LabError, become_root, exit_on_signals, say


def main(arguments: list[str]) -> int:
    """Run one command of the lab and return its exit status."""
    options = _parser().parse_args(arguments)
    become_root()
    exit_on_signals()
    try:
        return int(options.action(options))
    except LabError as error:
        say(str(error))
        return EXIT_NO_BENCH if options.action is _bench else 1
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="A real IPVS kernel on machines without one.")
    parts = parser.add_subparsers(required=True, metavar="PART")
    _add_bench(parts.add_parser("bench", help="run a command in a kernel that has IPVS and iptables"))
    part = parts.add_parser("fleet", help="LVS routers as machines of their own, with client and real servers")
    _add_fleet(part.add_subparsers(required=True, metavar="ACTION"))
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mem", default="768M", help="memory of the user-mode-linux kernel (default: %(default)s)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end the command after so many seconds")
    parser.add_argument(
        "--kernel",
        choices=("auto", "own", "uml"),
        default="auto",
        help="the machine's own kernel, user-mode-linux, or the former where it has IPVS (default)",
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    parser.set_defaults(action=_bench)


def _bench(options: argparse.Namespace) -> int:
    return run_bench(options.command, options.mem, options.timeout, options.kernel)


def _add_fleet(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = actions.add_parser("up", help="start a fleet with fresh disks, in place of a running one")
    up.add_argument("--routers", type=int, default=2, choices=range(1, 10), help="(default: %(default)s)")
    up.add_argument("--mem", default="256M", help="memory of each router (default: %(default)s)")
    up.add_argument("--inventory", type=Path, metavar="FILE", help="write the Ansible inventory there")
    up.set_defaults(action=lambda options: fleet.up(options.routers, options.mem, options.inventory))

    for name, action, text in (
        ("down", fleet.down, "stop the fleet and remove all that is left of it"),
        ("status", fleet.status, "say which routers answer"),
        ("inventory", fleet.inventory, "print the Ansible inventory"),
    ):
        actions.add_parser(name, help=text).set_defaults(action=lambda _options, action=action: action())

    for name, router_action, text in (
        ("console", fleet.console, "print the end of a router's console"),
        ("route", fleet.route, "lead the traffic for virtual addresses to a router"),
        ("reboot", fleet.reboot, "reboot a router and wait until it is back"),
    ):
        parser = actions.add_parser(name, help=text)
        parser.add_argument("router", metavar="ROUTER")
        parser.set_defaults(action=lambda options, action=router_action: action(options.router))

    execute = actions.add_parser("exec", help="run a command on a host of the fleet")
    execute.add_argument("host", metavar="HOST", help="router1, ..., client, gateway, server1, server2 or server3")
    execute.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments (default: bash)"
    )
    execute.set_defaults(action=_execute)


def _execute(options: argparse.Namespace) -> int:
    # argparse leaves the separator in what it does not look into.
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return fleet.execute(options.host, command or ["bash"])
