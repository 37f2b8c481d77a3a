# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the collection into .build/dist, the same bytes from the same commit, and try the result as a user would.

It is shown to the program by which Galaxy takes or refuses an archive, too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / ".build/dist"
SOURCE = ROOT / ".build/source"
INSTALLED = ROOT / ".build/installed"
IMPORTER = ROOT / ".build/importer/bin"
NAME = "lvs.fleet"
PLAYBOOK = "lvs.fleet.deploy"


def run(*command: str | Path, **variables: str) -> str:
    """Run a command that sees the installed collection only; its standard output."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(INSTALLED), **variables}
    result = subprocess.run(command, cwd=DIST, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}: status {result.returncode}\n{result.stdout}")
    return result.stdout


def commit_time() -> int:
    """Seconds since the epoch of the last commit: the time every file in the archive gets."""
    log = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return int(log.stdout or 0)


def make_reproducible(archive: Path, time: int) -> None:
    """Rewrite what ansible-galaxy built: files sorted, times and owners fixed."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        content = {member.name: tar.extractfile(member).read() for member in members if member.isfile()}

    files = json.loads(content["FILES.json"])
    files["files"].sort(key=lambda entry: entry["name"])
    content["FILES.json"] = json.dumps(files, indent=True).encode()
    manifest = json.loads(content["MANIFEST.json"])
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(content["FILES.json"]).hexdigest()
    content["MANIFEST.json"] = json.dumps(manifest, indent=True).encode()

    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for old in sorted(members, key=lambda member: member.name):
            member = tarfile.TarInfo(old.name)
            member.type, member.mode, member.mtime = old.type, old.mode, time
            data = content.get(member.name, b"")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def show_to_galaxy(archive: Path) -> None:
    """Have Galaxy's importer look at the archive. Its ansible-lint is left out: `make lint` has a stricter one."""
    path = f"{IMPORTER}{os.pathsep}{os.environ['PATH']}"
    said = run(
        IMPORTER / "python", "-m", "galaxy_importer.main", archive, PATH=path, GALAXY_IMPORTER_RUN_ANSIBLE_LINT="no"
    )
    remarks = [line for line in said.splitlines() if line.startswith(("WARNING:", "ERROR:"))]
    if remarks:
        sys.exit(f"remarks of galaxy-importer:\n{said}")


def make_archive(folder: Path, source: Path) -> Path:
    """The checkout as an archive in a folder, which has no other one; source becomes what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar.gz"):
        old.unlink()
    subprocess.run([ROOT / "tests/tools/copy", source], check=True)
    command = ["ansible-galaxy", "collection", "build", "--output-path", folder, source]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tar.gz")
    make_reproducible(archive, commit_time())
    return archive


def show_documentation(run: Callable[..., str]) -> None:
    """Have ansible-doc show everything that is in the installed collection; run gives what a command says."""
    for kind in ("module", "filter", "lookup", "role"):
        names = list(json.loads(run("ansible-doc", "--type", kind, "--list", "--json", NAME)))
        if not names:
            sys.exit(f"ansible-doc knows no {kind}")
        run("ansible-doc", "--type", kind, "--json", *names)
        print(f"{kind}s: {' '.join(names)}")


def main() -> None:
    archive = make_archive(DIST, SOURCE)
    subprocess.run(["rm", "-rf", INSTALLED], check=True)
    run("ansible-galaxy", "collection", "install", "--offline", "--collections-path", INSTALLED, archive)
    run("ansible-galaxy", "collection", "verify", "--offline", "--collections-path", INSTALLED, NAME)
    show_documentation(run)
    run("ansible-playbook", "--inventory", "localhost,", "--syntax-check", PLAYBOOK)
    show_to_galaxy(archive)
    print(f"{archive.relative_to(ROOT)}  sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
