# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""What machines of a Debian release start from: a disk image, the ssh key it lets in, two kernels; kept in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cache import cached
from common import LAB, run, say, step
from debian import download, make_tree, unpack

MACHINE_ROOT = LAB / "machine-root"
SERVER = LAB / "server.py"
SERVER_FOLDER = Path("usr/local/lib/lab")
IMAGE_SIZE = "1400M"
# The kernels, and what the first of them needs on a machine with an older Debian.
UML_PACKAGES = ("user-mode-linux", "libc6")
DEBIAN_KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    *("systemd", "systemd-sysv", "kmod", "procps", "iproute2", "iptables", "ipvsadm"),
    *("openssh-server", "python3", "python3-apt", "dbus", "iptables-persistent", "nftables", "firewalld", "vsftpd"),
)
# Everything a machine of the lab can do without; what is left starts in half of the time.
MASKED_UNITS = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-tmpfiles-clean.timer", "e2scrub_reap.service", "getty.target", "getty-static.service"),
    *("remote-fs.target", "modprobe@.service", "systemd-binfmt.service", "systemd-firstboot.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-journal-flush.service"),
    *("systemd-machine-id-commit.service", "systemd-network-generator.service"),
    *("systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pstore.service"),
    *("systemd-random-seed.service", "systemd-remount-fs.service", "systemd-sysusers.service"),
    *("systemd-tmpfiles-setup-dev.service", "systemd-update-done.service", "systemd-update-utmp.service"),
    *("systemd-update-utmp-runlevel.service", "kmod-static-nodes.service", "ldconfig.service"),
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-boot-system-token.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount"),
    *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("cryptsetup.target", "integritysetup.target", "veritysetup.target"),
)
# shutdown(8), and so Ansible's reboot, talks to logind through D-Bus; both start when somebody asks for them.
NOT_AT_BOOT = ("dbus.service", "systemd-logind.service")
# What its package enables, and a machine of the lab has to ask for: it removes all rules of iptables when it starts.
DISABLED_UNITS = ("firewalld.service",)
# The generator for init scripts stays: a Debian package may bring such a service.
KEPT_GENERATOR = "systemd-sysv-generator"


@dataclass(frozen=True)
class Image:
    """A finished image in the cache, with the modules of both kernels."""

    folder: Path

    @property
    def user_mode_kernel(self) -> Path:
        """The release's user-mode-linux, a program."""
        return self.folder / "linux.uml"

    @property
    def libraries(self) -> Path:
        """The release's C library, for that program on a machine with an older one."""
        return self.folder / "libraries"

    @property
    def debian_kernel(self) -> Path:
        """Debian's own kernel. It has the drivers of NVMe disks and of ext4 built in, so it needs no initrd."""
        return self.folder / "vmlinuz"

    @property
    def disk(self) -> Path:
        """The read-only disk that the machines' own disks are based on."""
        return self.folder / "base.ext4"

    @property
    def ssh_key(self) -> Path:
        """The private key that root of a machine lets in."""
        return self.folder / "ssh_key"

    @property
    def certificate(self) -> Path:
        """The certificate of the real servers, with its key."""
        return self.folder / "certificate.pem"


def get_image(release: str) -> Image:
    """Return the image of a release for the present inputs, building it when the cache has none."""
    return Image(cached(f"image-{release}-{_key()}", lambda folder: _build(Image(folder), release)))


def _key() -> str:
    """Return a short hash of everything that the image is made from."""
    inputs = hashlib.sha256()
    for path in (LAB / "image.py", SERVER, *_own_files()):
        inputs.update(f"\0{path.relative_to(LAB)}\0".encode() + path.read_bytes())
    return inputs.hexdigest()[:12]


def _own_files() -> list[Path]:
    """Return the files that the lab adds to the Debian system."""
    return sorted(path for path in MACHINE_ROOT.rglob("*") if path.is_file())


def _build(image: Image, release: str) -> None:
    say(f"building the image of {release} machines, once: about a minute")
    tree = image.folder / "tree"
    with step("installed Debian"):
        _install_debian(tree, image, release)
    with step("made the image"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lvs.fleet lab", "-f", image.ssh_key)
        _make_certificate(image.certificate)
        _configure(tree, image)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, image.disk, IMAGE_SIZE)
        shutil.rmtree(tree)


def _install_debian(tree: Path, image: Image, release: str) -> None:
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "locale", "doc")]
    make_tree(release, PACKAGES, tree, *left_out, download(UML_PACKAGES, DEBIAN_KERNEL, image.folder))
    unpacked = image.folder / "unpacked"
    for package in image.folder.glob("*.deb"):
        unpack(package, unpacked)
    modules = tree / "usr/lib/modules"
    modules.mkdir(exist_ok=True)
    _take_kernels(unpacked, image, modules)
    shutil.rmtree(unpacked)


def _take_kernels(unpacked: Path, image: Image, modules: Path) -> None:
    """Move the kernels and the C library out of their unpacked packages, and the modules to where a machine has them.

    In packages of Debian 12 some of it is in /lib, in those of Debian 13 all is in /usr/lib.
    """
    (unpacked / "usr/bin/linux.uml").rename(image.user_mode_kernel)
    (program,) = unpacked.glob("boot/vmlinuz-*")
    program.rename(image.debian_kernel)
    (libc,) = unpacked.glob("**/libc.so.6")
    libc.parent.rename(image.libraries)
    for found in list(unpacked.glob("**/modules/*/kernel")):
        shutil.move(found.parent, modules / found.parent.name)


def _make_certificate(target: Path) -> None:
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
        *("-days", "3650", "-subj", "/CN=lvs.fleet lab", "-keyout", target, "-out", target),
    )


def _configure(tree: Path, image: Image) -> None:
    """Turn a plain Debian tree into one for a machine of the lab."""
    _copy_own_files(tree)
    for modules in (tree / "usr/lib/modules").iterdir():
        run("depmod", "--basedir", tree, modules.name)
    ssh = tree / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(image.ssh_key.with_suffix(".pub").read_text())
    _prepare_server(tree, image)
    # The kernel command line says both; an empty machine-id keeps systemd from taking this for a first boot.
    (tree / "etc/hostname").unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("")
    # mmdebstrap took the machine's own; with none, a look-up fails at once instead of waiting.
    (tree / "etc/resolv.conf").write_text("")
    for family in ("iptables", "ip6tables"):
        run("chroot", tree, "update-alternatives", "--quiet", "--set", family, f"/usr/sbin/{family}-legacy")
    # The first installation of iptables-persistent saves the rules it finds, which are this very machine's.
    for rules in (tree / "etc/iptables").glob("rules.*"):
        rules.unlink()
    _choose_units(tree)


def _copy_own_files(tree: Path) -> None:
    for path in _own_files():
        target = tree / path.relative_to(MACHINE_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        # Not the checkout's modes, which depend on who made it.
        target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _prepare_server(tree: Path, image: Image) -> None:
    """Install what a real server runs: the lab's program, and the FTP user."""
    folder = tree / SERVER_FOLDER
    folder.mkdir(parents=True)
    for path in (SERVER, image.certificate):
        shutil.copy(path, folder)
    run("chroot", tree, "useradd", "--create-home", "--shell", "/bin/bash", "lab")
    # Debian's usual hash takes this kernel most of two seconds per login.
    run("chroot", tree, "chpasswd", "--crypt-method", "SHA512", "--sha-rounds", "1000", stdin="lab:lab\n")


def _choose_units(tree: Path) -> None:
    for unit in NOT_AT_BOOT:
        (tree / "usr/lib/systemd/system/multi-user.target.wants" / unit).unlink()
    for words in (
        ("mask", *MASKED_UNITS),
        ("disable", *DISABLED_UNITS),
        ("set-default", "multi-user.target"),
        ("enable", "lab-network.service", "lab-server.service", "ssh.service"),
    ):
        run("chroot", tree, "systemctl", "--quiet", *words)
    _mask_generators(tree)


def _mask_generators(tree: Path) -> None:
    masks = tree / "etc/systemd/system-generators"
    masks.mkdir(parents=True, exist_ok=True)
    for generator in (tree / "usr/lib/systemd/system-generators").iterdir():
        if generator.name != KEPT_GENERATOR:
            (masks / generator.name).symlink_to("/dev/null")
