# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Let libFuzzer try one target: one.py TARGET OPTION... CORPUS, or with FILE in place of CORPUS that input alone.

An exception that the target lets through is a finding, and so is an input that takes too long or too much memory.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / ".build"
MEMORY = 4 << 30


def main() -> None:
    sys.path[:0] = [str(BUILD), str(BUILD / "fuzzer")]
    import atheris

    with atheris.instrument_imports(include=["ansible_collections.lvs.fleet.plugins"]):
        from ansible_collections.lvs.fleet.tests.fuzz.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    program, name, *options = sys.argv
    atheris.Setup([program, *options], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
