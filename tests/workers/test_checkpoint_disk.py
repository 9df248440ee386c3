"""A disk that fills up while a run trains."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.workers.tiny import run_training, tiny_spec
from workers import checkpoint_files
from workers.checkpoint import CheckpointStore, CheckpointWriteError
from workers.mesh import Membership


def test_a_run_on_a_full_disk_ends_with_the_path_and_its_earlier_checkpoints(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_files.HashingStream.write
    store = CheckpointStore(tmp_path)

    def full_after_the_first_checkpoint(self: Any, data: Any) -> int:
        if store.committed() and self.tell() > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(checkpoint_files.HashingStream, "write", full_after_the_first_checkpoint)
    with pytest.raises(CheckpointWriteError, match=r"step-00000004.*No space left on device") as failure:
        run_training(Membership(), tiny_spec(), tiny_data, tmp_path)
    assert failure.value.code == "checkpoint_write_failed"
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]
    assert checkpoint_files.is_whole(tmp_path / "step-00000002")
    monkeypatch.undo()
    outcome, rest = run_training(Membership(generation=1), tiny_spec(), tiny_data, tmp_path)
    assert outcome.kind == "succeeded"
    assert rest.beats[0] == 3
    store.close()
