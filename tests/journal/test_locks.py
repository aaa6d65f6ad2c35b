"""Who may write a stream and who may export it: one at a time, for as long as that one lives, and no longer."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from otel_audit.errors import JournalUnwritable
from otel_audit.journal.files import streams_in
from otel_audit.journal.locks import FileLock, prove_locks
from tests.chain_check import application_events
from tests.journal.moments import before, before_lock
from tests.journal.writing import a_journal, append, finish, lines_of, said, start_script, the_stream
from tests.servers.polling import poll

A_HOLDER = """
    import sys
    from pathlib import Path
    from otel_audit.journal.locks import FileLock

    lock = FileLock.acquire(Path(sys.argv[1]))
    print(lock is not None, flush=True)
    sys.stdin.read()
"""

# A child lives until the test closes the other end of the pipe.
A_PARENT = """
    import multiprocessing, os, sys
    from pathlib import Path
    from tests.journal.writing import a_journal, append

    journal = a_journal(Path(sys.argv[1]))
    append(journal, "parent")
    pipe = int(sys.argv[3])
    if sys.argv[2] == "multiprocessing":
        multiprocessing.get_context("fork").Process(target=os.read, args=(pipe, 1)).start()
    elif os.fork() == 0:
        os.read(pipe, 1)
        os._exit(0)
    print("ready", flush=True)
    sys.stdin.read()
"""


class Looker:
    """Somebody who looks at a lock just between the making of its file and the first attempt to lock it."""

    def __init__(self, *, times: int, kind: int) -> None:
        self.times = times
        self.seen: list[Path] = []
        self.holds = ExitStack()
        self._kind = kind

    def look(self, locked: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{locked}"))
        if not path.name.endswith(".writer.lock") or path in self.seen or len(self.seen) >= self.times:
            return
        self.seen.append(path)
        descriptor = os.open(path, os.O_RDONLY)
        self.holds.callback(os.close, descriptor)
        fcntl.flock(descriptor, self._kind)


@contextmanager
def looking(*, times: int, kind: int) -> Iterator[Looker]:
    looker = Looker(times=times, kind=kind)
    with looker.holds, before("fcntl.flock", looker.look):
        yield looker


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["that looks", "that takes over streams"])
def test_an_event_is_not_lost_to_somebody_who_has_the_lock_of_a_new_stream_for_a_moment(
    kind: int, tmp_path: Path
) -> None:
    journal = a_journal(tmp_path)
    with looking(times=3, kind=kind) as looker:
        append(journal, "a")

    assert len(looker.seen) == 3
    assert [path.name for path in tmp_path.glob("*.writer.lock")] == [the_stream(tmp_path).writer_lock.name]
    journal.close()
    assert [each["event_id"] for each in application_events(tmp_path)] == ["a"]


def test_somebody_who_only_looks_at_a_lock_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    looks: list[int] = []

    def look(operation: int) -> None:
        """Look at the lock before the first attempt, and until it is known that nobody owns it."""
        if not looks:
            looks.append(os.open(path, os.O_RDONLY))
            fcntl.flock(looks[0], fcntl.LOCK_SH)
        elif operation == fcntl.LOCK_UN and len(looks) == 1:
            looks.append(looks[0])
            os.close(looks[0])

    with before_lock(path, look):
        lock = FileLock.acquire(path)

    assert lock is not None
    assert len(looks) == 2
    assert FileLock.acquire(path) is None
    lock.release()


def test_an_event_is_not_lost_to_somebody_who_removes_the_directory_just_then(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = a_journal(directory)
    removed: list[str] = []

    def remove(path: object, *_: object) -> None:
        if str(path).endswith(".writer.lock") and not removed:
            removed.append(str(path))
            directory.rmdir()

    with before("open", remove):
        append(journal, "a")

    assert removed
    journal.close()
    assert [each["event_id"] for each in application_events(directory)] == ["a"]


def test_a_second_descriptor_is_kept_out(tmp_path: Path) -> None:
    lock = FileLock.acquire(tmp_path / "a.lock")
    assert lock is not None

    assert FileLock.acquire(tmp_path / "a.lock") is None
    assert FileLock.is_held(tmp_path / "a.lock")

    lock.release()
    assert not FileLock.is_held(tmp_path / "a.lock")
    assert FileLock.acquire(tmp_path / "a.lock") is not None


@pytest.mark.processes
def test_a_second_process_is_kept_out_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = start_script(A_HOLDER, tmp_path / "a.lock")
    assert said(holder) == "True"
    assert FileLock.acquire(tmp_path / "a.lock") is None
    assert FileLock.is_held(tmp_path / "a.lock")

    holder.kill()
    finish(holder)

    assert (tmp_path / "a.lock").exists()
    taken_over = FileLock.acquire(tmp_path / "a.lock")
    assert taken_over is not None
    taken_over.release()


def test_a_lock_that_nobody_refers_to_any_more_is_free(tmp_path: Path) -> None:
    """An asynchronous exception may come between the lock and whoever asked for it."""
    assert FileLock.acquire(tmp_path / "a.lock") is not None

    assert not FileLock.is_held(tmp_path / "a.lock")


def test_a_lock_is_free_when_its_taker_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a soft time limit, say, just after the kernel had given it."""

    def interrupted(path: Path, descriptor: int) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("otel_audit.journal.locks.is_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            FileLock.acquire(tmp_path / "a.lock")

    assert not FileLock.is_held(tmp_path / "a.lock")


def test_those_who_only_look_do_not_see_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.lock").touch()
    looking = os.open(tmp_path / "a.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)

    assert not FileLock.is_held(tmp_path / "a.lock")
    assert not FileLock.is_held(tmp_path / "missing.lock")
    os.close(looking)


def test_a_lock_file_that_was_replaced_is_not_taken_for_the_one_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.acquire(path)
    assert lock is not None
    assert lock.is_in_place()

    path.unlink()
    assert not lock.is_in_place()
    other = FileLock.acquire(path)
    assert other is not None
    lock.release(remove=True)

    assert path.exists(), "the lock file of another owner was removed"
    assert other.is_in_place()
    other.release(remove=True)
    assert not path.exists()


def test_a_lock_is_not_taken_on_a_file_that_its_owner_removes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    owner = FileLock.acquire(path)
    assert owner is not None
    opened_before = os.open(path, os.O_RDWR)

    owner.release(remove=True)
    taken = FileLock.acquire(path)

    assert taken is not None
    assert taken.is_in_place()
    assert os.stat(path).st_ino != os.fstat(opened_before).st_ino
    os.close(opened_before)
    taken.release()


def test_a_link_is_not_followed_to_be_locked(tmp_path: Path) -> None:
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"):
        FileLock.acquire(tmp_path / "a.lock")
    assert not (tmp_path / "elsewhere").exists()


def test_the_proof_of_locks_leaves_nothing_behind(tmp_path: Path) -> None:
    prove_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(JournalUnwritable, match="expected a file system"):
        prove_locks(tmp_path / "missing")


@pytest.mark.parametrize("ending", ["probe.lock", "reserve"])
def test_a_file_that_a_process_has_just_made_at_its_start_is_left_to_it(ending: str, tmp_path: Path) -> None:
    """It is not locked yet, perhaps. Taking its lock would look to its maker like locks that do not work."""
    path = tmp_path / f".01a22aa6-2050-77d9-9f76-43a18f295c97.{ending}"
    path.touch()

    prove_locks(tmp_path)
    assert path.exists()

    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    prove_locks(tmp_path)
    assert not path.exists()


@pytest.mark.processes
def test_reading_a_segment_frees_no_lock(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    files = the_stream(tmp_path)

    for _ in range(3):
        assert len(lines_of(files)) == 2
        files.segment(1).read_bytes()
        files.writer_lock.read_bytes()
    looker = start_script(A_HOLDER, files.writer_lock)

    assert said(looker) == "False"
    finish(looker)
    journal.close()


@pytest.mark.processes
def test_the_end_of_a_forked_child_does_not_free_the_lock_of_its_parent(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from tests.journal.writing import a_journal, append

        journal = a_journal(Path(sys.argv[1]))
        append(journal, "parent")
        for end in (os._exit, sys.exit):
            child = os.fork()
            if child == 0:
                journal.close()
                end(0)
            os.waitpid(child, 0)
        print("ready", flush=True)
        sys.stdin.read()
    """
    parent = start_script(script, tmp_path)
    assert said(parent) == "ready"

    assert FileLock.is_held(the_stream(tmp_path).writer_lock)
    finish(parent)


@pytest.mark.processes
@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_a_forked_child_that_lives_on_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path, how: str) -> None:
    keeps_alive, let_go = os.pipe()
    parent = start_script(A_PARENT, tmp_path, how, keeps_alive, pass_fds=(keeps_alive,))
    children: list[int] = []
    try:
        assert said(parent) == "ready"
        children = poll(lambda: _children(parent.pid), what="a child")
        lock = the_stream(tmp_path).writer_lock
        assert FileLock.is_held(lock)

        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(120)

        # The child closes its copy as soon as it runs, which on a busy machine may be after the end of its parent.
        poll(lambda: not FileLock.is_held(lock), what="the lock to be free")
        assert all(Path(f"/proc/{child}").exists() for child in children)
    finally:
        os.close(let_go)
        os.close(keeps_alive)
        finish(parent)


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.processes
def test_a_lock_freed_on_purpose_is_free_although_a_child_inherited_it(tmp_path: Path) -> None:
    """Another thread may fork in the moment in which somebody looks whether a writer lives."""
    lock = FileLock.acquire(tmp_path / "a.lock")
    assert lock is not None
    until_closed, closed = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(closed)
        os.read(until_closed, 1)
        os._exit(0)
    try:
        lock.release()

        assert not FileLock.is_held(tmp_path / "a.lock")
    finally:
        os.close(until_closed)
        os.close(closed)
        os.waitpid(child, 0)


def test_a_writer_whose_lock_file_was_removed_makes_it_again(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    files = the_stream(tmp_path)

    files.writer_lock.unlink()

    poll(lambda: FileLock.is_held(files.writer_lock), what="the lock to be held again")
    append(journal, "b")
    journal.close()
    assert [each["event_id"] for each in application_events(tmp_path)] == ["a", "b"]
    assert not files.writer_lock.exists()


def test_a_writer_whose_stream_was_taken_over_goes_on_in_a_new_one(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    files = the_stream(tmp_path)

    files.writer_lock.unlink()
    adopter = FileLock.acquire(files.writer_lock)
    assert adopter is not None

    poll(lambda: len(streams_in(tmp_path)) == 2, what="a second stream")
    append(journal, "b")
    journal.close()
    assert adopter.is_in_place()
    assert [each["event_id"] for each in application_events(tmp_path)] == ["a", "b"]
    adopter.release()
