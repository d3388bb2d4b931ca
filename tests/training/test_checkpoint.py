"""Checkpoints: whole or absent, checked, and never run as code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from glr_dist.errors import CheckpointError
from glr_dist.training import checkpoint

STATE = {
    "network": {"weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(7, dtype=torch.int64)},
    "epoch": 3,
    "seconds": 0.1 + 0.2,
    "schedule": None,
    "names": ["a", ("b", True)],
}
HEADER = 1 + len(b"glr_dist-checkpoint 1 ") + 64  # bytes of the first line


def same(a: object, b: object) -> bool:
    """Equal plain values, and tensors that agree in type, shape and every bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint.name_of(3)
    checkpoint.save(path, STATE)
    return path


def sealed(path: Path, payload: bytes) -> None:
    """Any bytes under a right header and digest."""
    path.write_bytes(b"glr_dist-checkpoint 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


# ---------------------------------------------------------------- whole


def test_what_was_saved_is_loaded(saved):
    assert same(checkpoint.load(saved), STATE)


def test_saving_leaves_one_file(saved):
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_replaces_the_older_file(saved):
    checkpoint.save(saved, {"epoch": 4})
    assert checkpoint.load(saved) == {"epoch": 4}


def test_saving_makes_the_folder(tmp_path):
    checkpoint.save(tmp_path / "a" / "b" / "epoch-00001.pt", STATE)
    assert same(checkpoint.load(tmp_path / "a" / "b" / "epoch-00001.pt"), STATE)


# ---------------------------------------------------------------- interrupted


class Crash(BaseException):
    """Not an Exception: like Ctrl-C it goes through `except Exception`."""


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), Crash()], ids=repr)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_else(saved, monkeypatch, call, failure):
    def fail(*arguments: object, **options: object) -> None:
        raise failure

    before = saved.read_bytes()
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(failure)):
        checkpoint.save(saved, {"epoch": 4})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "epoch-00001.pt", STATE)
    assert list(tmp_path.iterdir()) == []


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(saved, monkeypatch):
    # The order is what makes a power cut harmless: bytes flushed, then renamed, then the folder flushed.
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell a file from a folder")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    checkpoint.save(saved, {"epoch": 4})
    assert done == ["file", "rename", "folder"]


# ---------------------------------------------------------------- damaged


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for length in [0, 5, HEADER - 1, HEADER, HEADER + 1, len(whole) // 2, len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=str(saved)):
            checkpoint.load(saved)


def test_a_flipped_bit_is_refused_wherever_it_is(saved):
    whole = saved.read_bytes()
    for place in [*range(0, HEADER, 7), *range(HEADER, len(whole), len(whole) // 40)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(saved)):
            checkpoint.load(saved)


def test_added_bytes_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="digest"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"not a checkpoint\n", b"PK\x03\x04", b"glr_dist-checkpoint 2 " + 64 * b"0" + b"\nx"]
)
def test_another_file_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "epoch-00001.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a whole checkpoint of glr_dist"):
        checkpoint.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot be read|is not a file") as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)


class Planted:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    mark, path = tmp_path / "ran", tmp_path / "epoch-00001.pt"
    buffer = io.BytesIO()
    if zipped:
        torch.save({"network": Planted(mark)}, buffer)
    else:
        buffer.write(pickle.dumps({"network": Planted(mark)}))
    sealed(path, buffer.getvalue())
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert not mark.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("payload", [b"", b"garbage", b"PK\x03\x04 no archive"])
def test_a_payload_that_torch_cannot_read_is_refused(tmp_path, payload):
    path = tmp_path / "epoch-00001.pt"
    sealed(path, payload)
    with pytest.raises(CheckpointError, match="epoch-00001") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_the_twin_of_the_planted_payload_would_run_if_it_were_unpickled(tmp_path):
    # Shows that the test above could fail.
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()


# ---------------------------------------------------------------- folders of them


def test_the_newest_comes_first_and_other_files_do_not_count(tmp_path):
    for epoch in (1, 9, 10, 2):
        checkpoint.save(tmp_path / checkpoint.name_of(epoch), {"epoch": epoch})
    for other in ("epoch-1.pt", "best.pt", ".epoch-00011.pt.partial", "epoch-00012.pt.bak", "epoch-0000x.pt"):
        (tmp_path / other).write_bytes(b"")
    assert [path.name for path in checkpoint.listed(tmp_path)] == [checkpoint.name_of(e) for e in (10, 9, 2, 1)]


def test_the_newest_comes_first_when_the_number_outgrows_its_padding(tmp_path):
    for epoch in (99_999, 100_000):
        checkpoint.save(tmp_path / checkpoint.name_of(epoch), {"epoch": epoch})
    assert checkpoint.newest(tmp_path)[1] == {"epoch": 100_000}
    checkpoint.prune(tmp_path, 1, 100_000)
    assert checkpoint.newest(tmp_path)[1] == {"epoch": 100_000}


def test_a_damaged_newest_is_passed_over_and_named(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path / checkpoint.name_of(epoch), {"epoch": epoch})
    (tmp_path / checkpoint.name_of(3)).write_bytes(b"")
    broken = tmp_path / checkpoint.name_of(2)
    broken.write_bytes(broken.read_bytes()[:-3])
    path, state, damaged = checkpoint.newest(tmp_path)
    assert (path.name, state) == ("epoch-00001.pt", {"epoch": 1})
    assert len(damaged) == 2
    assert "epoch-00003.pt" in damaged[0]
    assert "epoch-00002.pt" in damaged[1]


def test_without_a_whole_one_each_damaged_one_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.newest(tmp_path)
    for epoch in (1, 2):
        (tmp_path / checkpoint.name_of(epoch)).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"epoch-00002\.pt.*; .*epoch-00001\.pt"):
        checkpoint.newest(tmp_path)


def test_pruning_keeps_the_newest(tmp_path):
    for epoch in range(1, 6):
        checkpoint.save(tmp_path / checkpoint.name_of(epoch), {"epoch": epoch})
    (tmp_path / "mine.pt").write_bytes(b"")
    checkpoint.prune(tmp_path, 2, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00004.pt", "epoch-00005.pt", "mine.pt"]


def test_pruning_neither_counts_nor_deletes_stray_files_of_later_epochs(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path / checkpoint.name_of(epoch), {"epoch": epoch})
    for stray in ("epoch-99999.pt", "epoch-123456.pt", "epoch-9999x.pt"):
        (tmp_path / stray).write_bytes(b"")
    checkpoint.prune(tmp_path, 2, 3)
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name < "epoch-1"} == {"epoch-00002.pt", "epoch-00003.pt"}
    assert len(names) == 5


def test_torch_loads_a_checkpoint_as_a_plain_file(saved):
    assert same(torch.load(saved, weights_only=True), checkpoint.load(saved))


def test_checkpoints_of_the_first_format_are_read(saved):
    buffer = io.BytesIO()
    torch.save({"epoch": 7}, buffer)
    header = f"glr_dist-checkpoint 1 {hashlib.sha256(buffer.getvalue()).hexdigest()}\n"
    saved.write_bytes(header.encode() + buffer.getvalue())
    assert checkpoint.load(saved) == {"epoch": 7}
    saved.write_bytes(saved.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="digest does not match"):
        checkpoint.load(saved)


@pytest.mark.parametrize("special", ["fifo", "folder"])
def test_a_checkpoint_that_is_not_a_file_is_refused_without_waiting(tmp_path, special):
    path = tmp_path / "epoch-00001.pt"
    os.mkfifo(path) if special == "fifo" else path.mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.load(path)


# ---------------------------------------------------------------- the digest of parameters


def test_the_digest_does_not_depend_on_order_or_memory_layout():
    matrix = torch.arange(6.0).view(2, 3)
    first = {"a": matrix, "b": torch.ones(2)}
    again = {"b": torch.ones(2), "a": matrix.T.contiguous().T}  # the same values, stored by columns
    assert checkpoint.digest(first) == checkpoint.digest(again)


def test_the_digest_depends_on_names_values_types_and_shapes():
    values = torch.arange(6.0)
    states = [
        {"a": values},
        {"b": values},
        {"a": values.view(2, 3)},
        {"a": values.double()},
        {"a": values.view(torch.int32)},  # the same bytes
        {"a": torch.cat([values[:5], torch.tensor([5.0000005])])},  # one bit
        {"a": values, "b": torch.zeros(0)},
        {"a": values[:3], "b": values[3:]},
        {"a": -values},
        {},
    ]
    assert len({checkpoint.digest(state) for state in states}) == len(states)


def test_the_digest_takes_scalars_booleans_and_half_precision():
    for tensor in (torch.tensor(3), torch.tensor([True, False]), torch.ones(3, dtype=torch.bfloat16)):
        assert len(checkpoint.digest({"a": tensor})) == 64
