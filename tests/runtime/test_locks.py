import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tversky_seg.runtime import locks
from tversky_seg.runtime.locks import Locked, Owner, is_abandoned, lock_file, owner_of, read_lock

HOLD = """
import sys, time
from pathlib import Path
from tversky_seg.runtime.locks import lock_file
with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def write_lock(path: Path, owner: Owner, *, age_s: float = 0.0) -> None:
    """Leave a lock file as another process would."""
    path.write_text(json.dumps({"owner": asdict(owner)}))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_second_lock_is_refused_with_its_owner_and_free_afterwards(path: Path) -> None:
    with lock_file(path, content={"case_ids": ["a"]}):
        assert read_lock(path)["case_ids"] == ["a"]
        with pytest.raises(Locked, match=str(os.getpid())), lock_file(path):
            pass
        assert path.exists()
    assert not path.exists()
    with lock_file(path):
        pass


def test_a_waiting_lock_follows_the_first(path: Path) -> None:
    order = []

    def second() -> None:
        with lock_file(path, wait_s=30, even_if_alive=True):
            order.append("second")

    with lock_file(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_many_threads_are_in_the_block_one_at_a_time(path: Path) -> None:
    n_inside, most = 0, 0

    def work() -> None:
        nonlocal n_inside, most
        for _ in range(5):
            with lock_file(path, wait_s=60, even_if_alive=True):
                n_inside += 1
                most = max(most, n_inside)
                time.sleep(0.001)
                n_inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lock_of_a_killed_process_is_free_at_once(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"held"
    with pytest.raises(Locked), lock_file(path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert path.exists()
    with lock_file(path):
        owner = owner_of(path)
        assert owner is not None
        assert owner.pid == os.getpid()


def test_another_machine_holds_its_lock_as_long_as_it_touches_it(path: Path) -> None:
    elsewhere = replace(Owner.this_process(), machine="other", host="node7", pid=1)
    write_lock(path, elsewhere, age_s=60)
    with pytest.raises(Locked, match="node7"), lock_file(path):
        pass
    write_lock(path, elsewhere, age_s=130)
    assert is_abandoned(path)
    with lock_file(path):
        pass


def test_nobody_waits_long_for_a_process_that_works_here(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS_FOR_AN_END", 0.1)
    start = time.monotonic()
    with lock_file(path), pytest.raises(Locked), lock_file(path, wait_s=60):
        pass
    assert 0.1 <= time.monotonic() - start < 10


def test_nobody_waits_long_for_a_process_elsewhere_that_touches_its_lock(path: Path) -> None:
    write_lock(path, replace(Owner.this_process(), machine="other", host="node7"), age_s=30)
    toucher = threading.Timer(0.3, os.utime, (path,))
    toucher.start()
    start = time.monotonic()
    with pytest.raises(Locked, match="node7"), lock_file(path, wait_s=60):
        pass
    toucher.join()
    assert 0.2 <= time.monotonic() - start < 10


def test_a_killed_process_elsewhere_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS_UNTIL_ABANDONED", 30.5)
    write_lock(path, replace(Owner.this_process(), machine="other"), age_s=30)
    start = time.monotonic()
    with lock_file(path, wait_s=60):
        assert time.monotonic() - start < 10


def test_a_process_number_that_was_taken_again_holds_no_lock(path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads start times as Linux gives them")
    write_lock(path, replace(Owner.this_process(), started="1"))
    with lock_file(path):
        pass


def test_a_held_lock_is_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TOUCHES", 0.01)
    with lock_file(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_lock_that_is_being_written_is_held(path: Path) -> None:
    path.touch()
    with pytest.raises(Locked), lock_file(path):
        pass


def test_a_lock_that_was_lost_is_not_removed(path: Path) -> None:
    other = replace(Owner.this_process(), token="other")
    with lock_file(path):
        write_lock(path, other)
    assert owner_of(path) == other


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError), lock_file(tmp_path / "none" / ".lock"):
        pass
