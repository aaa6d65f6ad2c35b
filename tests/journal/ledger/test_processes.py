"""Many processes at one ledger: at once, killed and stopped within a turn, forked, and as two users."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from otel_audit.errors import LedgerBusy
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.locks import FileLock
from tests.journal.ledger.telling import a_ledger, last_checked
from tests.journal.writing import open_files

pytestmark = pytest.mark.processes

HEAD = (Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})


def teller(directory: Path, name: object, turns: int, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.journal.ledger.teller", str(directory), str(name), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]  # any option


def test_processes_that_take_turns_at_once_sign_every_size_once_in_one_chain(tmp_path: Path) -> None:
    running = [teller(tmp_path, name, 3) for name in range(32)]
    sizes = [int(line) for each in running for line in each.communicate(timeout=170)[0].split()]

    found = last_checked(tmp_path)
    assert [each.returncode for each in running] == [0] * 32
    told = [(entry["name"], entry["number"]) for entry in found.told("retain")]
    assert sorted(told) == sorted((str(name), number) for name in range(32) for number in range(3))
    assert len(set(sizes)) == len(sizes) == 96
    assert {note.size for note in found.notes[1:]} == set(sizes)
    assert found.kinds.count("begin") == 1


def test_a_process_killed_at_any_moment_of_its_turns_leaves_a_ledger_that_goes_on(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    for name in range(5):
        process = teller(tmp_path, name, 10_000)
        assert process.stdout is not None
        acknowledged |= {int(process.stdout.readline()) for _ in range(name + 1)}
        process.kill()
        acknowledged |= {int(line) for line in process.stdout if line.endswith("\n")}
        process.wait()
        process.stdout.close()

    a_ledger(tmp_path, segment_bytes=20_000).tell([HEAD])

    found = last_checked(tmp_path)
    assert found.kinds.count("begin") == 1
    assert acknowledged <= {note.size for note in found.notes}
    assert found.unsigned == 0


STOPS_IN_ITS_TURN = """
import os, signal, sys
from pathlib import Path
from tests.journal.ledger.telling import a_ledger
from otel_audit.journal.ledger.entries import Kind
with a_ledger(Path(sys.argv[1])).turn() as turn:
    print(turn.write([(Kind.RETAIN, {"number": 1})]).checkpoint.size, flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    print(turn.write([(Kind.RETAIN, {"number": 2})]).checkpoint.size, flush=True)
"""


def test_while_a_process_is_stopped_within_its_turn_others_wait_and_write_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPS_IN_ITS_TURN, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    with pytest.raises(LedgerBusy, match="was stopped while it had it"), a_ledger(tmp_path).turn(wait_s=0.1):
        pass

    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=120)
    a_ledger(tmp_path).tell([HEAD])
    assert last_checked(tmp_path).kinds == ["begin", "retain", "retain", "head"]


def test_a_process_stopped_within_its_turn_whose_lock_file_is_removed_writes_nothing_more(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS_IN_ITS_TURN, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    (tmp_path / "ledger.lock").unlink()
    a_ledger(tmp_path).tell([HEAD])

    process.send_signal(signal.SIGCONT)
    _, says = process.communicate(timeout=120)

    assert b"LedgerBusy" in says
    found = last_checked(tmp_path)
    assert found.kinds == ["begin", "retain", "head"]
    assert len({note.size for note in found.notes}) == len(found.notes)


FORKS_IN_ITS_TURN = """
import os, sys, time
from pathlib import Path
from otel_audit.errors import LedgerBusy
from otel_audit.journal.ledger.entries import Kind
from tests.journal.ledger.telling import a_ledger
directory = Path(sys.argv[1])
ledger = a_ledger(directory)
with ledger.turn() as turn:
    turn.write([(Kind.RETAIN, {"of": "parent"})])
    if (child := os.fork()) == 0:
        try:
            turn.write([(Kind.RETAIN, {"of": "child, within the turn of its parent"})])
        except LedgerBusy as error:
            os.write(1, b"refused ")
        os.read(0, 1)
        ledger.tell([(Kind.RETAIN, {"of": "child"})])
        os._exit(0)
    turn.write([(Kind.RETAIN, {"of": "parent again"})])
ledger.tell([(Kind.RETAIN, {"of": "parent, while the child lives"})])
os.write(1, b"let go ")
os.waitpid(child, 0)
"""


def test_a_forked_child_leaves_lock_and_turn_to_its_parent_and_takes_turns_of_its_own(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS_IN_ITS_TURN, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said = process.stdout.read(15)
    process.communicate(b"x", timeout=120)

    assert sorted(said.split()) == [b"go", b"let", b"refused"]
    found = last_checked(tmp_path)
    told = [entry["of"] for entry in found.told("retain")]
    assert told == ["parent", "parent again", "parent, while the child lives", "child"]


KILLED_WITH_A_CHILD = """
import os, signal, sys, time
from pathlib import Path
from otel_audit.journal.ledger.entries import Kind
from tests.journal.ledger.telling import a_ledger
with a_ledger(Path(sys.argv[1])).turn() as turn:
    turn.write([(Kind.RETAIN, {})])
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        os.close(1)
        time.sleep(600)
    os.read(0, 1)
"""


def test_the_child_of_a_process_that_was_killed_within_its_turn_does_not_keep_the_turn(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WITH_A_CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        a_ledger(tmp_path).tell([HEAD])
        assert last_checked(tmp_path).kinds == ["begin", "retain", "head"]
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


AS_ANOTHER_USER = """
import os, sys, tempfile
from pathlib import Path
from otel_audit.journal.ledger.entries import Kind
from tests.journal.ledger.telling import a_ledger
with tempfile.TemporaryDirectory() as made:  # all that it needs of root's files is loaded
    a_ledger(Path(made)).tell([(Kind.RETAIN, {})])
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(65_534)
a_ledger(Path(sys.argv[1]), file_mode=int(sys.argv[3], 8)).tell([(Kind.RETAIN, {"of": "another user"})])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("mode", [0o660, 0o640])
def test_two_users_of_one_group_share_a_ledger_if_its_files_let_them(memory_disk: Path, mode: int) -> None:
    group = 61_234
    os.chown(memory_disk, -1, group)
    os.chmod(memory_disk, 0o2770)
    a_ledger(memory_disk, file_mode=mode).tell([HEAD])
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, str(memory_disk), str(group), f"{mode:o}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    kinds = last_checked(memory_disk).kinds
    if mode == 0o660:
        assert kinds == ["begin", "head", "retain"], done.stderr
        a_ledger(memory_disk, file_mode=mode).tell([HEAD])
        assert last_checked(memory_disk).kinds[-1] == "head"
    else:
        assert "PermissionError" in done.stderr
        assert kinds == ["begin", "head"]


def test_no_key_and_no_lock_of_a_turn_is_left_open_behind_it(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])

    assert open_files(tmp_path) == []
    lock = FileLock.acquire(tmp_path / "ledger.lock")
    assert lock is not None
    lock.release()


def test_a_process_imports_the_cryptography_when_it_takes_its_first_turn(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from otel_audit.journal.ledger.entries import Kind
        from tests.journal.ledger.telling import a_ledger
        ledger = a_ledger(Path(sys.argv[1]))
        before = "cryptography" in sys.modules
        ledger.tell([(Kind.RETAIN, {})])
        print(before, "cryptography" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "True"]
    shutil.rmtree(tmp_path)
