"""A disk that forgets: which states of a directory a loss of power can leave, by what was written and not synced.

`Recorder` stands in front of the calls of the operating system that change files, does each, and remembers it. A call
that changes a file is certain after a sync of that file; one that changes a name, after a sync of the directory.
Everything else may or may not be on the disk, each for itself, and a write may be there in part.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Killed", "Recorder", "State", "states_after"]

State = dict[str, bytes]
_SUBSETS_MAX = 64


class Killed(BaseException):
    """Stands for SIGKILL: nothing after the last operation was done."""


@dataclass(frozen=True)
class Step:
    """One change. `inode` is a number of ours: a file that is made anew is another one."""

    kind: str  # write, truncate, allocate, create, unlink, sync, sync names
    inode: int
    offset: int = 0
    data: bytes = b""
    name: str = ""

    @property
    def is_of_names(self) -> bool:
        return self.kind in ("create", "unlink")


@dataclass
class Recorder:
    """Records what is done to a directory while `patched`. After `kill_at` steps it raises `Killed`, for good."""

    directory: Path
    kill_at: int = -1
    steps: list[Step] = field(default_factory=list)
    _inodes: dict[str, int] = field(default_factory=dict)
    _open: dict[int, tuple[int, bool]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _last: int = -1

    def patched(self, patch: pytest.MonkeyPatch) -> None:
        real = {
            name: getattr(os, name)
            for name in ("open", "close", "write", "pwrite", "ftruncate", "posix_fallocate", "fdatasync", "fsync")
        }
        real_unlink = os.unlink

        def opened(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
            name = os.fspath(path)
            is_own = isinstance(name, str) and os.path.dirname(name) == str(self.directory)
            is_there = is_own and os.path.exists(name)
            if is_own and flags & os.O_CREAT and not is_there:
                self._dies()
            descriptor: int = real["open"](path, flags, mode, **more)
            if is_own:
                short = os.path.basename(name)
                if flags & os.O_CREAT and not is_there:
                    self._inodes[short] = next(self._numbers)
                    self.steps.append(Step("create", self._inodes[short], name=short))
                elif short not in self._inodes:
                    self._inodes[short] = next(self._numbers)
                self._open[descriptor] = (self._inodes[short], bool(flags & os.O_APPEND))
            elif name == str(self.directory):
                self._open[descriptor] = (-1, False)
            return descriptor

        def closed(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real["close"](descriptor)

        def written(descriptor: int, data: Any) -> int:
            if descriptor not in self._open:
                return int(real["write"](descriptor, data))
            self._dies()
            inode, appends = self._open[descriptor]
            offset = os.fstat(descriptor).st_size if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
            self.steps.append(Step("write", inode, offset, bytes(data)))
            return int(real["write"](descriptor, data))

        def written_at(descriptor: int, data: Any, offset: int) -> int:
            if descriptor in self._open:
                self._dies()
                self.steps.append(Step("write", self._open[descriptor][0], offset, bytes(data)))
            return int(real["pwrite"](descriptor, data, offset))

        def on_file(kind: str, call: str) -> Callable[..., Any]:
            def done(descriptor: int, *arguments: int) -> Any:
                if descriptor in self._open:
                    self._dies()
                    inode = self._open[descriptor][0]
                    if inode < 0:
                        self.steps.append(Step("sync names", inode))
                    else:
                        self.steps.append(Step(kind, inode, sum(arguments)))
                return real[call](descriptor, *arguments)

            return done

        def unlinked(path: Any, **more: Any) -> None:
            name = os.fspath(path)
            if os.path.dirname(name) == str(self.directory):
                self._dies()
                short = os.path.basename(name)
                self.steps.append(Step("unlink", self._inodes.pop(short, -2), name=short))
            real_unlink(path, **more)

        patch.setattr(os, "open", opened)
        patch.setattr(os, "close", closed)
        patch.setattr(os, "write", written)
        patch.setattr(os, "pwrite", written_at)
        patch.setattr(os, "ftruncate", on_file("truncate", "ftruncate"))
        patch.setattr(os, "posix_fallocate", on_file("allocate", "posix_fallocate"))
        patch.setattr(os, "fdatasync", on_file("sync", "fdatasync"))
        patch.setattr(os, "fsync", on_file("sync", "fsync"))
        patch.setattr(os, "unlink", unlinked)

    def _dies(self) -> None:
        if 0 <= self.kill_at <= len(self.steps):
            raise Killed


@dataclass
class _Disk:
    """What is on it for certain."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def copy(self) -> _Disk:
        return _Disk(dict(self.files), dict(self.names))

    def apply(self, step: Step) -> None:
        content = self.files.get(step.inode, b"")
        match step.kind:
            case "create":
                self.names[step.name] = step.inode
            case "unlink":
                self.names.pop(step.name, None)
            case "write":
                before = content[: step.offset].ljust(step.offset, b"\0")
                self.files[step.inode] = before + step.data + content[step.offset + len(step.data) :]
            case "truncate":
                self.files[step.inode] = content[: step.offset].ljust(step.offset, b"\0")
            case "allocate":
                self.files[step.inode] = content.ljust(step.offset, b"\0")

    def state(self) -> State:
        return {name: self.files.get(inode, b"") for name, inode in self.names.items()}


def states_after(steps: Sequence[Step], *, exhaustive: bool = True) -> Iterator[tuple[int, State]]:
    """Yield each state that power lost after so many of the steps can leave, behind the most steps that leave it.

    Not `exhaustive`: of what is not synced all, nothing, and each single change that is missing or alone.
    """
    disk = _Disk()
    pending: list[Step] = []
    yield 0, {}
    for number, step in enumerate(steps, 1):
        if step.kind == "sync":
            for each in [each for each in pending if each.inode == step.inode and not each.is_of_names]:
                disk.apply(each)
                pending.remove(each)
        elif step.kind == "sync names":
            for each in [each for each in pending if each.is_of_names]:
                disk.apply(each)
                pending.remove(each)
        else:
            pending.append(step)
        seen = set()
        for chosen in _choices(pending, exhaustive):
            left = disk.copy()
            for each in chosen:
                left.apply(each)
            state = left.state()
            key = tuple(sorted(state.items()))
            if key not in seen:
                seen.add(key)
                yield number, state


def _choices(pending: Sequence[Step], exhaustive: bool) -> Iterator[Sequence[Step]]:
    count = len(pending)
    if not exhaustive:
        yield pending
        yield ()
        for index in range(count):
            yield [*pending[:index], *pending[index + 1 :]]
            yield pending[index : index + 1]
    elif 2**count <= _SUBSETS_MAX:
        for size in range(count + 1):
            yield from itertools.combinations(pending, size)
    else:
        dice = random.Random(count)
        yield from (pending, ())
        for _ in range(_SUBSETS_MAX):
            yield [each for each in pending if dice.random() < 0.5]
    for index, step in enumerate(pending):
        if step.kind == "write" and exhaustive:
            for length in (1, len(step.data) // 2, len(step.data) - 1):
                torn = Step("write", step.inode, step.offset, step.data[:length])
                yield [*pending[:index], torn, *pending[index + 1 :]]
                yield [torn]
            # Of several blocks the later ones may be there, and the first one not.
            half = len(step.data) // 2
            hole = Step("write", step.inode, step.offset + half, step.data[half:])
            yield [*pending[:index], hole, *pending[index + 1 :]]
