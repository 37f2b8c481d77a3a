# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Command line of the lab."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fleet
from bench import EXIT_BROKEN_PIPE, EXIT_NO_BENCH, run_bench
from common import LabError, become_root, exit_on_signals, say
from debian import RELEASES
from network import ROUTERS, SERVERS
from root import run_in_root


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
    _add_root(parts.add_parser("root", help="run a command in a copy of the checkout, on a Debian that has nothing"))
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


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release", choices=RELEASES, default=RELEASES[0], help="which Debian it is (default: %(default)s)"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    parser.set_defaults(action=lambda options: run_in_root(options.command, options.release))


def _add_fleet(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = actions.add_parser("up", help="start a fleet with fresh disks, in place of a running one")
    up.add_argument(
        "--routers",
        type=int,
        default=2,
        choices=range(1, len(ROUTERS) + 1),
        metavar="N",
        help=f"1 to {len(ROUTERS)} (default: %(default)s)",
    )
    up.add_argument(
        "--server-machines",
        type=int,
        default=0,
        choices=range(len(SERVERS) + 1),
        help="how many of the real servers are machines of their own (default: %(default)s)",
    )
    up.add_argument(
        "--kernel",
        choices=("uml", "debian"),
        default="uml",
        help="what routers run on: user-mode-linux (default), or Debian's kernel in an emulator, with iptables on nft",
    )
    up.add_argument(
        "--release",
        type=_releases,
        default=[RELEASES[0]],
        metavar="RELEASE[,RELEASE]",
        help=f"which Debian machines have, in turn if more than one: {', '.join(RELEASES)} (default: {RELEASES[0]})",
    )
    up.add_argument("--mem", default="256M", help="memory of each machine (default: %(default)s)")
    up.add_argument("--inventory", type=Path, metavar="FILE", help="write the Ansible inventory there")
    up.set_defaults(action=_up)

    for name, action, text in (
        ("down", fleet.down, "stop the fleet and remove all that is left of it"),
        ("status", fleet.status, "say which machines answer"),
        ("inventory", fleet.inventory, "print the Ansible inventory"),
    ):
        actions.add_parser(name, help=text).set_defaults(action=lambda _options, action=action: action())

    for name, machine_action, text in (
        ("console", fleet.console, "print the end of a machine's console"),
        ("route", fleet.route, "lead the traffic for virtual addresses to a router"),
        ("reboot", fleet.reboot, "reboot a machine and wait until it is back"),
    ):
        parser = actions.add_parser(name, help=text)
        parser.add_argument("machine", metavar="MACHINE")
        parser.set_defaults(action=lambda options, action=machine_action: action(options.machine))

    execute = actions.add_parser("exec", help="run a command on a host of the fleet")
    execute.add_argument("host", metavar="HOST", help="router1, ..., client, gateway, server1, server2 or server3")
    execute.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments (default: bash)"
    )
    execute.set_defaults(action=_execute)


def _releases(text: str) -> list[str]:
    releases = text.split(",")
    if unknown := [release for release in releases if release not in RELEASES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return releases


def _up(options: argparse.Namespace) -> int:
    machines = [*ROUTERS[: options.routers], *SERVERS[: options.server_machines]]
    return fleet.up(machines, options.release, options.mem, options.kernel == "debian", options.inventory)


def _execute(options: argparse.Namespace) -> int:
    # argparse leaves the separator in what it does not look into.
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return fleet.execute(options.host, command or ["bash"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
