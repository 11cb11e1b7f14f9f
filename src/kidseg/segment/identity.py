"""Whether an entry of `result.json` is the result of the same scan, read in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kidseg.errors import InputError, KidsegError, UsageError, converted
from kidseg.io import ReadOptions, kind_of
from kidseg.io.content import sha256_of, sha256_of_all
from kidseg.segment.index import RESULT, Entry, Index
from kidseg.segment.outputs import Outputs
from kidseg.segment.predictor import Predictor
from kidseg.segment.scans import paths_of
from kidseg.segment.sources import Source

__all__ = ["digest_of", "done_before", "is_same_call", "reading_of"]


def reading_of(options: ReadOptions) -> dict[str, Any]:
    """The options that decide what is read, as plain data; what values mean is the model's."""
    reading = asdict(replace(options, spacing_mm=None))
    del reading["values"], reading["memory_limit_bytes"]
    spacing_mm = options.spacing_mm
    return {**reading, "spacing_mm": None if spacing_mm is None else list(spacing_mm)}


def digest_of(source: Source, channels: int, options: ReadOptions) -> str:
    """SHA-256 of a scan's file; of several files, as of a DICOM study, their joint digest.

    Raises:
        InputError, OSError: a file cannot be read.
    """
    if source.files:
        return sha256_of_all(source.files)
    paths = paths_of(source.path, channels, source.case)
    files = [file for path in paths for file in _with_voxels(path, options)]
    if len(files) == 1 and files[0].is_file():
        return sha256_of(files[0])
    return sha256_of_all(files)


def is_same_call(
    sources: Sequence[Source], index: Index, predictor: Predictor, options: ReadOptions
) -> bool:
    """Could the results of these names be those of the same scans, model and options?"""
    entries = [index.scans[s.name] for s in sources if s.name in index.scans]
    return bool(entries) and not any(_other_call(e, predictor, options) for e in entries)


def done_before(
    sources: Sequence[Source],
    outputs: Mapping[str, Outputs],
    index: Index,
    predictor: Predictor,
    options: ReadOptions,
    *,
    overwrite: bool,
) -> tuple[dict[str, dict[str, Any]], list[Source]]:
    """Find the scans that this model has segmented, whose requested outputs are there.

    Args:
        sources: the scans.
        outputs: of each, by name.
        index: of the folder.
        predictor: of the model.
        options: of reading.
        overwrite: replace the results of other scans, models and options.

    Returns:
        Their entries by name; and the other scans. One that cannot be compared with the result of
        its name, because it cannot be read, has that error.

    Raises:
        UsageError: "output-exists": a result is of another scan of the same name, of another model
            or of other options of reading.
    """
    known, todo, others = {}, [], []
    for source in sources:
        entry = index.scans.get(source.name)
        if entry is None:
            todo.append(source)
            continue
        try:
            digest = digest_of(source, len(predictor.method.plan.channels), options)
        except (KidsegError, OSError) as error:
            todo.append(replace(source, error=source.error or _failure(error, source.path)))
            continue
        other = _other_call(entry, predictor, options)
        if not other and entry.get("sha256") != digest:
            other = "another scan of this name"
        if other:
            others.append((source, other))
        if not other and outputs[source.name].are_there(entry):
            known[source.name] = dict(entry)
        else:
            todo.append(source)
    if others and not overwrite:
        source, other = others[0]
        more = f", and {len(others) - 1} more are of others" if len(others) > 1 else ""
        raise UsageError(
            f"the result '{source.name}' is of {other}{more}",
            path=outputs[source.name].all[0].with_name(RESULT),
            code="output-exists",
            next_step="Choose another folder, or replace the result with --overwrite.",
        )
    return known, todo


def _other_call(entry: Entry, predictor: Predictor, options: ReadOptions) -> str:
    """What an entry is of, if it is of another model or of other options; else empty."""
    model = entry.get("model")
    if not isinstance(model, Mapping) or model.get("sha256") != predictor.sha256:
        return "another model"
    adapted = entry.get("adapted")
    by = adapted.get("by") if isinstance(adapted, Mapping) else "none"
    if by != predictor.adapt:
        return f"--adapt {by}"
    return "" if entry.get("reading") == reading_of(options) else "other options of reading"


def _with_voxels(path: Path, options: ReadOptions) -> tuple[Path, ...]:
    """The files of an image: a header can have its voxels in another."""
    kind = kind_of(path)
    if kind == "nrrd":
        from kidseg.io.nrrd import describe_nrrd

        return tuple(dict.fromkeys((path, describe_nrrd(path, options).file)))
    if kind == "metaimage":
        from kidseg.io.metaimage import describe_metaimage

        return tuple(dict.fromkeys((path, describe_metaimage(path, options).file)))
    return (path,)


def _failure(error: KidsegError | OSError, path: Path) -> KidsegError:
    known = error if isinstance(error, KidsegError) else converted(error, path)
    return known or InputError(
        "it cannot be read",
        path=path,
        code="unreadable",
        next_step="Check its name and permissions.",
    )
