"""The state of a kit, put together from pieces of whole parameters, of rows and of columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.training.kit.state_files import WholeState

MATRIX = torch.arange(24.0).reshape(4, 6)
LEFT, RIGHT = MATRIX[:, :2].reshape(-1), MATRIX[:, 2:].reshape(-1)
ROWS = {"a|0|exp_avg": MATRIX.reshape(-1)[:12], "a|12|exp_avg": MATRIX.reshape(-1)[12:]}
COLUMNS = {
    "a|0-2-6|0|exp_avg": LEFT[:3],
    "a|0-2-6|3|exp_avg": LEFT[3:],
    "a|2-6-6|0|exp_avg": RIGHT,
}


def _written(folder: Path, *files: dict[str, torch.Tensor]) -> list[Path]:
    paths = [folder / f"optimizer-{number:02d}.safetensors" for number in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return paths


@pytest.mark.parametrize("pieces", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_pieces_of_several_files_are_one_tensor(
    tmp_path: Path, pieces: dict[str, torch.Tensor]
) -> None:
    parts = [dict([part]) for part in pieces.items()]
    with WholeState(_written(tmp_path, *reversed(parts))) as state:
        (file,) = state.write(tmp_path)
        assert torch.equal(load_file(file)["a|0|exp_avg"], MATRIX.reshape(-1))
        target = {"a": torch.zeros(4, 6), "b": torch.zeros(2)}
        assert state.fill("exp_avg", target) == ["b"]
        assert torch.equal(target["a"], MATRIX)


@pytest.mark.parametrize(
    ("pieces", "lacking"),
    [
        ({"a|12|exp_avg": ROWS["a|12|exp_avg"]}, "at element 0"),
        ({key: COLUMNS[key] for key in list(COLUMNS)[1:]}, "at element 0"),
        ({key: COLUMNS[key] for key in list(COLUMNS)[:2]}, "at column 2"),
        ({"a|2-6-6|0|exp_avg": RIGHT}, "at column 0"),
        (COLUMNS | {"a|2-6-6|0|exp_avg": RIGHT[:8]}, "at column 6"),
        (COLUMNS | {"a|2-6-6|0|exp_avg": RIGHT[:15]}, "at column 6"),
    ],
)
def test_what_is_missing_is_an_error(
    tmp_path: Path, pieces: dict[str, torch.Tensor], lacking: str
) -> None:
    with pytest.raises(ValueError, match=f"the checkpoint lacks a part of a's exp_avg, {lacking}"):
        WholeState(_written(tmp_path, pieces))
