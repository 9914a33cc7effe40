"""Files and folders: whole or not at all, one process at a time, permissions of the umask, and nothing of the user's
touched."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harpe.errors import HarpeError
from harpe.files import check_new_folder, full_disk_told, new_folder, read_json, remove_leftovers, write_json
from harpe.locks import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from harpe.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_second_process_is_told_at_once_who_works_there_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(HarpeError, match=rf"in use by process {other.pid} on .+ since \d{{4}}-"),
            locked(tmp_path / "run"),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    with locked(tmp_path / "run"):
        pass


def test_a_second_thread_is_refused_too_and_the_lock_comes_back(tmp_path: Path) -> None:
    told: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path / "run"):
                pass
        except HarpeError as error:
            told.append(str(error))

    with locked(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        with pytest.raises(HarpeError, match="in use by"), locked(tmp_path / "run"):
            pass
    assert len(told) == 1
    with locked(tmp_path / "run"):
        pass


def test_a_lock_leaves_an_empty_folder_empty_and_removes_only_a_folder_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with locked(tmp_path / name):
            assert (tmp_path / name / LOCK).is_file()
    with locked(tmp_path / "a" / "b"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "result").touch()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [LOCK, "result"]
    (tmp_path / "file").touch()
    with pytest.raises(HarpeError, match="cannot be used as a folder"), locked(tmp_path / "file"):
        pass


def test_files_and_folders_have_the_permissions_of_the_umask(tmp_path: Path, umask: None) -> None:
    def write(name: str) -> dict[str, int]:
        with new_folder(tmp_path / name) as folder:
            # which safetensors makes readable for its owner only
            save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text("a")
            write_json(folder / "b.json", {})
        return {str(p.relative_to(tmp_path / name)): mode(p) for p in [tmp_path / name, *(tmp_path / name).rglob("*")]}

    assert write("private") == {".": 0o700, "model.safetensors": 0o600, "sub": 0o700, "sub/a": 0o600, "b.json": 0o600}
    os.umask(0o002)
    assert write("shared") == {".": 0o775, "model.safetensors": 0o664, "sub": 0o775, "sub/a": 0o664, "b.json": 0o664}


def test_a_folder_is_on_the_disk_before_it_has_its_name_and_its_name_before_this_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        "os.fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))[1]
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (done.append(f"{self} becomes {target}"), rename(self, target))[1]
    )
    with new_folder(tmp_path / "data") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "tokens.bin").write_bytes(b"x")
    names = [f"{folder}/sub/tokens.bin", f"{folder}/sub", f"{folder} becomes {tmp_path / 'data'}", str(tmp_path)]
    places = [done.index(name) for name in names[:3]]
    assert max(places[:2]) < places[2] and done[-1] == names[3]


def test_two_that_make_one_folder_do_not_meet_and_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".data.1.0123456789ab.partial").mkdir()
    (tmp_path / ".data.mine.partial").mkdir()
    with new_folder(tmp_path / "data") as folder:
        (folder / "a").touch()
        with pytest.raises(HarpeError, match="in use by"), new_folder(tmp_path / "data"):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".data.mine.partial", "data"]
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other"):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()


def test_what_killed_processes_left_anywhere_in_a_run_goes_and_nothing_else(tmp_path: Path) -> None:
    for left in (
        ".data.1.0123456789ab.partial",
        "a/b/.model.1.0123456789ab.partial",
        "a/.model.lock",
        "a/.held.lock",
        "a/.mine.lock",
    ):
        (tmp_path / left).mkdir(parents=True)
    (tmp_path / "a" / ".model.lock" / ".harpe.lock").touch()
    (tmp_path / "a" / ".model.lock" / ".harpe.lock.json").touch()
    (tmp_path / "a" / ".mine.lock" / "notes").touch()
    (tmp_path / "a" / ".x.json.1.0123456789ab.partial").touch()
    with locked(tmp_path / "a" / ".held.lock"):
        remove_leftovers(tmp_path)
        assert sorted(p.name for p in tmp_path.rglob("*") if p.parent.name in ("a", "b", tmp_path.name)) == [
            ".held.lock",
            ".mine.lock",
            "a",
            "b",
        ]
    # killed when the folder had its name, which is refused from then on
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "file").touch()
    (tmp_path / ".whole.lock").mkdir()
    with pytest.raises(HarpeError, match="not overwritten"):
        check_new_folder(tmp_path / "whole")
    assert not (tmp_path / ".whole.lock").exists()


def test_folders_that_cannot_be_put_in_place_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with new_folder(tmp_path / "link") as folder:  # works, and the link stays one
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "a").exists()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cases = (
        ("nowhere", "a link to"),
        ("file", "not an empty"),
        ("empty", "not an empty"),
        ("file/a", "Name another"),
        ("here/.", "runs in"),
    )
    for name, message in cases:
        with pytest.raises(HarpeError, match=message):
            check_new_folder(tmp_path / name)
    with pytest.raises(HarpeError, match="runs in"):
        check_new_folder(Path("."))
    if Path("/dev/shm").is_mount() and not any(Path("/dev/shm").iterdir()):
        with pytest.raises(HarpeError, match="mount point"):
            check_new_folder(Path("/dev/shm"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "here", "link", "nowhere"]


def test_a_limit_to_the_size_of_files_is_told(tmp_path: Path) -> None:
    """As `ulimit -f` sets one; /dev/full has none."""
    tensors, (soft, hard) = {"a": torch.zeros(300_000)}, resource.getrlimit(resource.RLIMIT_FSIZE)
    writers = (
        lambda: save_file(tensors, tmp_path / "b"),
        lambda: write_json(tmp_path / "c", {"a": "x" * 300_000}),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for write in writers:
            with pytest.raises(HarpeError, match="files may not be so large"), full_disk_told(tmp_path):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_whichever_library_writes(tmp_path: Path) -> None:
    """/dev/full takes no byte; what safetensors says of a full disk is quoted, since it writes to no device."""
    with pytest.raises(HarpeError, match="The disk is full"), full_disk_told(tmp_path):
        torch.save({"a": torch.zeros(300_000)}, "/dev/full")
    with (
        pytest.raises(HarpeError, match="The disk is full"),
        full_disk_told(tmp_path),
        Path("/dev/full").open("w") as stream,
    ):
        stream.write("x" * 10**6)
    with pytest.raises(RuntimeError, match="shapes"), full_disk_told(tmp_path):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": "1"}', '{"schema_version": 99}', "\ufeff{}", b"\xff\xfe"]
)
def test_a_damaged_file_is_a_sentence_that_names_it(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HarpeError, match=r"plan\.json"):
        read_json(path)
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())
