"""Scans as tasks of workers: each worker must have the model of the main process."""

from __future__ import annotations

from pathlib import Path

import pytest

from kidseg.checkpoint import load_model, save_model
from kidseg.errors import ModelError
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.scan_task import WorkerModel, _loaded
from trained import copied


def test_a_worker_with_another_model_at_the_same_path_refuses_it(
    trained: Path, tmp_path: Path
) -> None:
    model = copied(trained, tmp_path) / "run" / "model.safetensors"
    wanted = WorkerModel.of(load_predictor([model], "cpu"))
    assert _loaded(wanted).sha256 == wanted.sha256
    _loaded.cache_clear()
    known = load_model(model)
    model.unlink()
    save_model(model, known.parts, {**known.header, "licence": "another"})
    with pytest.raises(ModelError) as refused:
        _loaded(wanted)
    assert refused.value.code == "another-model" and "Use the same model" in refused.value.next_step
