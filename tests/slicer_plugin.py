"""What the plug-in MONAILabel of 3D Slicer does, by its own client, as a person uses it.

    python slicer_plugin.py http://127.0.0.1:8000 DATASET

DATASET is a folder in nnU-Net's layout: its images are uploaded, its labels are what a person makes
of those of the model.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from monailabel.client import MONAILabelClient

SEGMENTS = [{"name": "kidney", "idx": 1}, {"name": "tumour", "idx": 2}]
LOOK_S, TRAIN_S = 180, 300


def main(address: str, dataset: Path) -> None:
    client = MONAILabelClient(address, tmpdir=str(dataset.parent))
    assert client.info()["labels"] == ["kidney", "tumour"]
    labels = {}
    for scan in sorted((dataset / "imagesTr").iterdir()):
        name = scan.name.removesuffix("_0000.nii.gz")
        client.upload_image(str(scan), name)
        digest = "SHA256:" + hashlib.sha256(scan.read_bytes()).hexdigest()
        labels[digest] = dataset / "labelsTr" / f"{name}.nii.gz"
    until(lambda: labelled(client, "original") == len(labels), LOOK_S)
    for _ in labels:
        sample = client.next_sample("most_uncertain", {})
        assert Path(client.download_label(sample["id"], "original")).stat().st_size
        corrected = labels[sample["checksum"]]
        client.save_label(sample["id"], str(corrected), params={"label_info": SEGMENTS})
    assert client.next_sample("most_uncertain", {}) == {}
    client.train_start("kidseg", {})
    until(lambda: client.train_status()["status"] != "RUNNING", TRAIN_S)
    status = client.train_status()
    assert status["status"] == "DONE", status
    assert status["new_model"] == (status["dice"]["after"] > status["dice"]["before"])


def labelled(client: MONAILabelClient, tag: str) -> int:
    return int(client.info()["datastore"]["label_tags"].get(tag, 0))


def until(happened: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
