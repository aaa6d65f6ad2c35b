"""A real systemd as the first process of its own namespaces, over this machine's files, which stay as they are."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.servers.polling import poll

__all__ = ["BootedSystemd"]

_ROOT = Path(__file__).resolve().parents[2]
_SYSTEMD = Path("/lib/systemd/systemd")
_START_TIMEOUT_S = 120.0
# Units of a whole machine, which would wait for hardware, or start what the host runs already.
_MASKED = [
    "systemd-udevd.service systemd-networkd.service systemd-resolved.service systemd-timesyncd.service",
    "systemd-logind.service systemd-journal-flush.service systemd-remount-fs.service systemd-update-utmp.service",
    "systemd-firstboot.service console-getty.service getty@tty1.service dbus.service dev-hugepages.mount",
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer",
]
# $1 is an empty directory, $2 a cgroup, $3 the collector, $4 the checkout, $5 its packages, $6 the prefix of Python.
_BOOT = r"""
set -eu
ip link set lo up
mount --make-rprivate /
mount -t tmpfs -o size=32g tmpfs "$1"  # room is given as it is used
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mkdir -p opt/checkout opt/packages opt/python opt/otel-audit/bin
mount --rbind "$4" opt/checkout
mount --rbind "$5" opt/packages
mount --rbind "$6" opt/python
install -m 0755 "$3" usr/local/bin/otelcol-audit
cat > opt/otel-audit/main.py <<END
import sys
sys.path[:0] = ["/opt/checkout", "/opt/packages"]
sys.argv[0] = "/opt/otel-audit/bin/otel-audit"
from otel_audit.cli import main
main()
END
# The library of an interpreter below somebody's home is hidden from a unit, and is found here.
cat > opt/otel-audit/bin/otel-audit <<END
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python3 /opt/otel-audit/main.py "\$@"
END
chmod 0755 opt/otel-audit/bin/otel-audit
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=1777 tmpfs dev/shm || true
mount --rbind /dev dev
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
rm -rf etc/systemd/system
mkdir -p etc/systemd/system
for unit in $7; do ln -s /dev/null "etc/systemd/system/$unit"; done
ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
: > etc/fstab
mkdir run/old
pivot_root . run/old
umount -l /run/old
mount --make-rshared /  # as a machine has it; else a unit does not see its credentials
exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=console
"""


class BootedSystemd:
    """It has its own processes, mounts, network and users; the checkout is at /opt/checkout.

    The collector and `otel-audit` are where the units expect them. With its first process everything is gone.
    """

    def __init__(self, place: Path, collector: Path) -> None:
        place.mkdir()
        self._log = place.with_suffix(".log")
        self._cgroup = _cgroup2() / f"otel-audit-tests-{place.name}-{id(self):x}"
        packages = sysconfig.get_paths()["purelib"]
        self._command: list[str | Path] = [
            *("unshare", "--fork", "--kill-child", "--pid", "--mount", "--cgroup", "--ipc", "--uts", "--net"),
            *("bash", "-c", _BOOT, "boot", place, self._cgroup, collector, _ROOT, packages, sys.base_prefix),
            " ".join(_MASKED),
        ]
        self._outside: subprocess.Popen[bytes] | None = None
        self._first = 0

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        enter = f'echo $$ > "{self._cgroup}/cgroup.procs"; exec "$@"'
        with self._log.open("wb") as log:
            self._outside = subprocess.Popen(
                ["sh", "-c", enter, "sh", *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            poll(self._is_up, timeout_s=_START_TIMEOUT_S, what="a systemd that is up")
        except AssertionError as error:
            self._end()
            pytest.skip(f"no systemd can be booted (needs root, systemd and overlayfs): {error}; {self._said()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, script: str, *, check: bool = True) -> str:
        """What a shell script prints, as root in the checkout.

        Raises:
            AssertionError: a command of it failed, and `check` is true.
        """
        done = subprocess.run(
            [*self._inside(), "bash", "-euo", "pipefail", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout.strip()

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --property={key} --value {unit}")

    def journal(self, unit: str) -> str:
        """Everything that a unit said."""
        return self.run(f"journalctl --no-pager --output=cat --unit={unit}")

    def _inside(self) -> list[str]:
        enter = ["nsenter", f"--target={self._first}", "--all", "--root"]
        return [*enter, "env", "-i", "--chdir=/opt/checkout", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]

    def _is_up(self) -> bool:
        assert self._outside is not None
        if self._outside.poll() is not None:
            raise AssertionError(f"it ended with {self._outside.returncode}")
        children = Path(f"/proc/{self._outside.pid}/task/{self._outside.pid}/children").read_text().split()
        if len(children) != 1 or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._first = int(children[0])
        state = subprocess.run(
            [*self._inside(), "systemctl", "is-system-running"], capture_output=True, text=True, timeout=30, check=False
        )
        return state.stdout.strip() in {"running", "degraded"}

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _end(self) -> None:
        if self._outside is not None:
            self._outside.kill()
            self._outside.wait()
        folders = sorted((path for path in self._cgroup.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*folders, self._cgroup]:
            poll(partial(_removed, folder), what=f"{folder} without processes")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _cgroup2() -> Path:
    """Where this machine's cgroups of version 2 are."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    pytest.skip("no systemd can be booted: no file system of the kind cgroup2")
