# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""The root: one command on a Debian that has nothing, in a copy of this checkout, on the machine's own kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import packages
from cache import cached
from common import CHECKOUT, CONTAINED, LAB, new_state, run, step
from debian import make_tree

# All that CONTRIBUTING asks for. Whatever else a target needs, it installs.
PACKAGES = ("git", "make", "python3")
COPY = "root/lvs.fleet"
DOWNLOADS = "mnt/downloads"
# How the machine reaches the archives of packages, which is nothing that could be missing on a fresh one.
NETWORK_FILES = ("etc/resolv.conf", "etc/hosts")
NETWORK_VARIABLES = (
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"),
    *("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "UV_DEFAULT_INDEX", "UV_INDEX"),
)


def run_in_root(command: list[str], release: str) -> int:
    """Run the command in a new root, and return its exit status."""
    packages.ensure(packages.ROOT)
    plain = cached(f"root-{release}-{_key()}", lambda folder: _build(folder / "tree", release)) / "tree"
    downloads = cached("root-downloads", lambda _folder: None)
    state = new_state("root")
    root = state / "tree"
    try:
        run("cp", "--archive", "--reflink=auto", plain, root)
        run(CHECKOUT / "tests/tools/copy", root / COPY)
        run("git", "init", "--quiet", root / COPY)
        variables = _network(root)
        words = [*CONTAINED, "--mount", str(LAB / "root.sh"), str(root), str(downloads), f"{root}/{DOWNLOADS}"]
        words += ["env", "-i", f"--chdir=/{COPY}", *(f"{name}={value}" for name, value in variables.items())]
        return subprocess.run([*words, *command], stdin=subprocess.DEVNULL, check=False).returncode
    finally:
        shutil.rmtree(state)


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _build(tree: Path, release: str) -> None:
    with step(f"made a root of {release}, once"):
        make_tree(release, PACKAGES, tree)


def _network(root: Path) -> dict[str, str]:
    """Have the root reach the network as the machine does; the environment for its programs.

    What pip downloads is kept for later runs, and so is what uv does: it is installed anew all the same.
    """
    for name in NETWORK_FILES:
        shutil.copyfile(Path("/", name), root / name)
    variables = {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}
    for name, value in variables.items():
        if Path(value).is_file():
            variables[name] = f"/mnt/{name}"
            shutil.copyfile(value, root / "mnt" / name)
    caches = {"PIP_CACHE_DIR": f"/{DOWNLOADS}/pip", "UV_CACHE_DIR": f"/{DOWNLOADS}/uv", "UV_LINK_MODE": "copy"}
    return {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb", **variables, **caches}
