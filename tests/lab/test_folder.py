import re
from pathlib import Path

import pytest
import torch

from natgrad.lab.errors import DamagedError, UsageError, WriteError
from natgrad.lab.folder import Results, RunFolder, open_results


def test_rows_survive_a_cut_off_line(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    place.append({"update": 0})
    place.append({"update": 1})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"update": 2')
    assert place.rows() == [{"update": 0}, {"update": 1}]


def test_a_last_line_that_is_no_json_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"update": 0}\n\0\0\0\n')
    assert RunFolder(tmp_path).rows() == [{"update": 0}]


@pytest.mark.parametrize("line", [b'{"update": 1', b"\xff\xfe", b""])
def test_a_line_before_the_last_that_is_no_json_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    for rest in (b'{"update": 2}\n', b'{"upd'):
        path.write_bytes(b'{"update": 0}\n' + line + b"\n" + rest)
        with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged: line 2 is no JSON")):
            RunFolder(tmp_path).rows()


def test_weights_come_back_and_a_changed_or_cut_file_is_named(tmp_path: Path) -> None:
    place, path = RunFolder(tmp_path), tmp_path / "weights.pt"
    assert place.load_weights() is None
    weight = torch.arange(600.0)
    about = place.save_weights({"weight": weight})
    found = place.load_weights()
    assert found is not None
    assert torch.equal(found["weight"], weight)
    whole = path.read_bytes()
    middle = whole.index(weight[300:310].numpy().tobytes())
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (changed, whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=rf"{re.escape(str(path))} is damaged .*--resume"):
            place.load_weights()
    place.save_weights({"weight": -weight})
    place.set_status({"status": "finished", **about})  # of the other file
    with pytest.raises(DamagedError, match="its sha256 is not the"):
        place.load_weights()


def test_rows_are_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(tmp_path).append({"loss": float("nan")})


def test_rows_can_be_set_back(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "new")
    place.set_rows([{"update": 0}])
    place.append({"update": 1})
    place.set_rows(place.rows()[:1])
    assert place.rows() == [{"update": 0}]


def test_a_manifest_is_updated_entry_by_entry(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    assert results.manifest() == {}
    results.update_manifest(status="running", tuned={})
    results.update_manifest(status="finished")
    assert results.manifest() == {"status": "finished", "tuned": {}}


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        Results(tmp_path).manifest()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="not empty; add --resume"):
        open_results(tmp_path, resume=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        open_results(tmp_path / "absent", resume=True)


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteError, match="can't write results to"):
            open_results(path, resume=False)
