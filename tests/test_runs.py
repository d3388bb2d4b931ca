"""Run folders: the files of a run, and the settings that decide its result."""

from __future__ import annotations

import pytest

from glr_dist.errors import ConfigError
from glr_dist.runs import ReadOnlyRunFolder, RunFolder, deciding


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run of glr-dist train") as caught:
        RunFolder(tmp_path).config()
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(tmp_path, tiny):
    folder = RunFolder(tmp_path / "run")
    folder.begin(tiny())
    assert folder.exists
    assert folder.config() == tiny()
    assert folder.metrics() == []
    folder.append_metrics({"epoch": 1})
    folder.append_metrics({"epoch": 2})
    with folder.metrics_file.open("a") as file:
        file.write('{"epoch": 3')  # half written
    assert folder.metrics() == [{"epoch": 1}, {"epoch": 2}]
    folder.replace_metrics([{"epoch": 1}])
    assert folder.metrics() == [{"epoch": 1}]
    folder.write_summary({"seed": 0})
    assert folder.summary() == {"seed": 0}
    with pytest.raises(ConfigError, match="not empty; continue it with --resume"):
        folder.begin(tiny())


def test_a_read_only_folder_writes_nothing(tmp_path, tiny):
    folder = ReadOnlyRunFolder(tmp_path / "run")
    folder.begin(tiny())
    folder.append_metrics({"epoch": 1})
    folder.replace_metrics([])
    folder.write_checkpoint("epoch-00001.pt", lambda path: path.write_bytes(b""))
    folder.write_summary({})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("execution.threads=1", True),
        ("data.root=/elsewhere", True),
        ("data.download=false", True),
        ("training.keep_checkpoints=5", True),
        ("training.verify=false", True),
        ("diagnose.draws=3", True),
        ("tracking.experiment=other", True),
        ("seed=1", False),
        ("data.split_seed=1", False),
        ("training.epochs=4", False),
        ("noise.scale={'*': 0.5}", False),
    ],
)
def test_settings_that_decide_the_result(tiny, override, same):
    assert (deciding(tiny()) == deciding(tiny(override))) == same
