"""File systems that a test may fill, freeze and break: real ones, which only root can mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Unmountable", "broken_ext4", "ext4", "frozen", "read_only", "tmpfs"]


class Unmountable(Exception):
    """This machine does not let the test mount such a file system; says why."""


@contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    """A file system in memory, such as `size=256k` or `nr_inodes=8`.

    Raises:
        Unmountable: not as this user.
    """
    with _mounted(at, "-t", "tmpfs", "-o", options, "tmpfs"):
        yield at


@contextmanager
def ext4(at: Path, size_kib: int) -> Iterator[Path]:
    """A file system like that of a real disk, in an image beside the place where it is mounted.

    Raises:
        Unmountable: not as this user, or without the program or the loop devices for it.
    """
    with _mounted(at, "-t", "ext4", "-o", "loop,errors=remount-ro", str(_ext4_image(at, size_kib))):
        yield at


def _ext4_image(at: Path, size_kib: int) -> Path:
    image = at.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(size_kib * 1024)
    try:
        # Without blocks that only root may use: it would be full for the service and not for the test.
        _run("mkfs.ext4", "-q", "-m", "0", "-b", "1024", str(image))
    except FileNotFoundError as error:
        raise Unmountable("mkfs.ext4 is not installed") from error
    return image


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Inside, nothing can be written to the mounted file system. Only while no file of it is open for writing."""
    _run("mount", "-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(disk))


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Inside, no file of the directory can be made or removed; those that are open can still be written.

    Raises:
        Unmountable: not as this user.
    """
    _run("mount", "--bind", str(directory), str(directory))
    try:
        _run("mount", "-o", "remount,ro,bind", str(directory))
        yield
    finally:
        _run("umount", "--lazy", str(directory))


@contextmanager
def broken_ext4(disk: Path) -> Iterator[None]:
    """An error in its structure has just made the file system read-only, as the kernel does while files are open.

    Afterwards the repaired one is mounted over it: what was open stays in the broken one.

    Raises:
        Unmountable: this kernel cannot be told to find an error.
    """
    device = _run("findmnt", "--noheadings", "--output", "SOURCE", str(disk)).strip()
    trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    image = disk.with_suffix(".image")
    try:
        trigger.write_text("an error for a test", encoding="ascii")
    except OSError as error:
        raise Unmountable(f"{trigger}: {error}") from error
    try:
        yield
    finally:
        copy = image.with_suffix(".repaired")  # the loop device lives as long as the files that are open
        copy.write_bytes(image.read_bytes())
        subprocess.run(["e2fsck", "-fy", str(copy)], capture_output=True, check=False)
        # Over the broken one, which is not unmounted first: a service that looks after its files in between would find
        # a bare mount point, put them back there, and lose them from sight with the next mount.
        _run("mount", "-o", "loop", str(copy), str(disk))


@contextmanager
def _mounted(at: Path, *arguments: str) -> Iterator[None]:
    at.mkdir()
    _run("mount", *arguments, str(at))
    try:
        yield
    finally:
        while at.is_mount():  # more than once where something was mounted over it
            _run("umount", "--lazy", str(at))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unmountable(f"`{' '.join(command)}` says: {done.stderr.strip()}")
    return done.stdout
