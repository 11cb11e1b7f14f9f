"""Output folders: one kind of content each, so that no command writes into another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kidseg.errors import UsageError
from kidseg.io.atomic import file_in_the_way

__all__ = ["KINDS", "FolderKind", "check_output_folder"]


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """A kind of folder.

    Attributes:
        name: as in "the folder contains ...".
        marks: patterns of names by which it is recognised; one is enough.
        own: patterns of names that the command writes, besides the marks; None: names that depend
            on the input, so that files of any name may already be there.
    """

    name: str
    marks: tuple[str, ...]
    own: tuple[str, ...] | None = ()

    def is_in(self, folder: Path) -> bool:
        """Is the folder of this kind?"""
        return any(any(folder.glob(mark)) for mark in self.marks)


KINDS = {
    kind.name: kind
    for kind in (
        FolderKind(
            name="a data set",
            marks=(
                "dataset.json",
                "imagesTr",
                "labelsTr",
                "patients.csv",
                "truth/organs.json",
                "kits.json",
                "case_*/imaging.nii.gz",
                "data/case_*/imaging.nii.gz",
                "dataset/case_*/imaging.nii.gz",
                "*/ct/*.dcm",
            ),
        ),
        FolderKind(
            name="a training run",
            marks=("run.json", "state-*.safetensors"),
            own=(
                *(
                    "config.toml",
                    "log.jsonl",
                    "plan.json",
                    "cases.json",
                    "start.safetensors",
                    "resumed.json",
                    "store",
                ),
                *("model.safetensors", "curves.png", "summary.json", "stamp.json"),
            ),
        ),
        FolderKind(
            name="a store",
            marks=("store.json", "begun.json"),
            own=("plan.json", "cases", "lock"),
        ),
        FolderKind(
            name="a study",
            marks=("study.toml",),
            own=(
                *("runs", "labels", "scores", "averaged", "compared", "logs"),
                *("study.json", "study.md", "study.png", "study.html"),
            ),
        ),
        FolderKind(
            name="a demo",
            marks=("demo.json",),
            own=("patients", "starter", "run", "result", "scores", "demo.png"),
        ),
        FolderKind(name="results", marks=("result.json", "*_seg.*"), own=None),
        FolderKind(name="scores", marks=("cases.csv", "compare.json"), own=None),
    )
}


def check_output_folder(out: Path, kind: str) -> None:
    """Refuse a folder of another kind, or with other things in it. Call it before any work.

    Hidden files do not count. A folder of this kind may contain further files.

    Args:
        out: the output folder; it need not exist.
        kind: name in `KINDS` of what will be written.

    Raises:
        UsageError: "output-exists": it is a file; "other-folder".
    """
    wanted = KINDS[kind]
    _check_above(out, wanted)
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir():
        raise file_in_the_way(out)
    others = [
        other.name
        for other in KINDS.values()
        if other != wanted
        and not (wanted.own is None and other.own is None)  # results and their scores
        and other.is_in(out)
    ]
    if wanted.own is not None and not wanted.is_in(out):
        others += _unknown(out, wanted.own)[:3]
    elif wanted.is_in(out):
        others = [name for name in others if name == "a data set"]
    if others:
        raise UsageError(
            f"the folder contains {', '.join(others)}; it is no place for {kind}",
            path=out,
            code="other-folder",
            next_step="Choose a new or an empty folder.",
        )


def _check_above(out: Path, wanted: FolderKind) -> None:
    """Refuse a folder inside a data set; results and scores only among its images and labels."""
    folders = (out.absolute(), *out.absolute().parents)
    for k, folder in enumerate(folders[1:], start=1):
        if not any((folder / mark).exists() for mark in ("dataset.json", "imagesTr", "labelsTr")):
            continue
        if wanted.own is not None or folders[k - 1].name.startswith(("images", "labels")):
            raise UsageError(
                f"the folder is inside the data set {folder}; it is no place for {wanted.name}",
                path=out,
                code="other-folder",
                next_step="Choose a folder outside the data set.",
            )


def _unknown(folder: Path, own: Sequence[str]) -> list[str]:
    """Visible entries of a folder that are not of these names."""
    return sorted(
        f"'{path.name}'"
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and not any(fnmatchcase(path.name, pattern) for pattern in own)
    )
