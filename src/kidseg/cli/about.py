"""What `kidseg info` tells of a model, a run or a store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kidseg.cli.summaries import described, steps_lines
from kidseg.errors import KidsegError
from kidseg.header import decision_of, described_members, read_header
from kidseg.model_card import ModelCard, Score, card_of
from kidseg.model_file import find_model, is_starter
from kidseg.table import text_table, wrapped

__all__ = ["model_text", "read_model", "read_store", "store_text"]

_CONTENTS = {"subjects": "images, body masks and labels of the cases, ready for the networks"}
"""In words, what a store contains."""

_SHORT = 12  # digits of a checksum that tell it from others


def read_store(path: Path) -> dict[str, Any] | None:
    """What a store holds; None if the path is not a store.

    Raises:
        ModelError: it is damaged, unfinished or of another version.
    """
    if not path.is_dir() or (path / "model.safetensors").is_file():
        return None
    from kidseg.cohort.stored import is_labelled
    from kidseg.store import is_store, open_store

    if not is_store(path):
        return None
    store = open_store(path, verify=False)
    training = set(store.plan.training)
    return {
        "kind": "store",
        "path": str(path),
        "digest": store.digest,
        "content": store.content,
        "settings": dict(store.settings),
        "labels": {str(number): name for number, name in store.plan.labels.items()},
        "channels": [channel.channel for channel in store.plan.channels],
        "cases": {
            "training": [case.id for case in store.cases if case.id in training],
            "validation": [
                case.id for case in store.cases if case.id not in training and is_labelled(case)
            ],
            "unlabelled": [case.id for case in store.cases if not is_labelled(case)],
        },
        "megabytes": round(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6, 1),
    }


def store_text(store: Mapping[str, Any]) -> str:
    """About a store, for people."""
    counts = ", ".join(f"{len(ids)} {part}" for part, ids in store["cases"].items() if ids)
    rows = [
        ("what", "a data set made ready for training, read once (a store)"),
        ("cases", counts),
        ("labels", _labels(store["labels"])),
        ("input", ", ".join(store["channels"])),
        ("content", _CONTENTS.get(store["content"], store["content"])),
        ("size", f"{store['megabytes']} MB"),
        ("digest", store["digest"][:_SHORT]),
    ]
    next_step = f"Train from it: kidseg train {shlex.quote(store['path'])} -o RUN"
    return "\n".join([store["path"], "", *described(rows), "", next_step])


def read_model(path: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(model file, its header, summary.json of its run; {} if there is none) of a model or run.

    Raises:
        ModelError: see `find_model` and `read_header`.
    """
    model = find_model(path)
    header = read_header(model)
    try:
        summary = json.loads((model.parent / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        summary = {}
    # The summary of another model in this folder says nothing about this one.
    written = summary.get("model") if isinstance(summary, dict) else None
    ours = isinstance(written, dict) and written.get("path") == model.name
    return model, header, summary if ours and Path(path).is_dir() else {}


def model_text(model: Path, header: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """About a model, for people; facts that the header lacks are left out.

    Raises:
        ModelError: see `card_of`.
    """
    card = card_of(header, model)
    found, data = header.get("selection", {}), header.get("training_set", {})
    scan = header.get("input", {})
    rows = [
        ("method", f"{header.get('method')}{_about_method(header)}"),
        ("settings", _preset(header, summary)),
        ("trained", ", ".join(_training(header, summary))),
        ("labels", _labels(header.get("labels", {}).get("names", {}))),
        ("input", _listed(scan.get("channels", ()), scan.get("unit"), scan.get("orientation"))),
        ("spacing", _spacing(header.get("plan", {}).get("median_spacing_mm"))),
        ("data", data and f"{data.get('cases')} cases, digest {str(data.get('digest'))[:_SHORT]}"),
        ("selected by", found.get("by")),
        ("members", described_members(header)),
        ("decision", _decision(header, model)),
        ("intervals", _intervals(header)),
        ("licence", header.get("licence") if card is None else card.licence),
        ("use", header.get("intended_use")),
        ("file", f"{model.stat().st_size / 1e6:.1f} MB, format {header.get('format')}"),
    ]
    lines = [str(model), "", *described([(name, str(text)) for name, text in rows if text])]
    for stage, dice in _dice(header).items():
        title = f"Dice in {found.get('validation_cases')} validation case(s), stage {stage}:"
        rows_of_dice = [[name, f"{value:.3f}"] for name, value in dice.items()]
        lines += ["", title, *text_table(["structure", "Dice"], rows_of_dice)]
    if steps := found.get("steps"):
        lines += ["", *steps_lines(steps, int(found.get("validation_cases", 0)))]
    if card is not None:
        lines += _card_lines(card)
    chosen = "" if is_starter(model) else f" -m {shlex.quote(str(model))}"
    return "\n".join([*lines, "", f"Use it: kidseg segment SCAN{chosen} -o result"])


def _card_lines(card: ModelCard) -> Iterable[str]:
    """The model card: training data, figures, limits."""
    yield from ["", "Model card"]
    yield from described([("trained on", card.trained_on), ("command", card.command)])
    for data in dict.fromkeys(score.data for score in card.measured):
        head = ["structure", "metric", "n", "mean (SD)", "median", "best", "worst"]
        rows = [_score_cells(score) for score in card.measured if score.data == data]
        yield from ["", *wrapped(f"Measured on {data}:"), *text_table(head, rows, keys=2)]
    for title, texts in (("It fails on:", card.fails_on), ("Do not use it for:", card.not_for)):
        if texts:
            yield from ["", title]
            yield from (line for text in texts for line in wrapped(f"  - {text}", indent="    "))


def _score_cells(score: Score) -> list[str]:
    figures = (score.median, score.best, score.worst)
    spread = "" if score.sd is None else f" ({score.sd:.3f})"
    return [
        *(score.structure, score.metric, str(score.n), f"{score.mean:.3f}{spread}"),
        *("-" if figure is None else f"{figure:.3f}" for figure in figures),
    ]


def _about_method(header: Mapping[str, Any]) -> str:
    """The method in words, from its settings' class."""
    from kidseg.config import METHODS

    kind = METHODS.get(str(header.get("method")))
    return "" if kind is None else f": {(kind.__doc__ or '').splitlines()[0].rstrip('.')}"


def _preset(header: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The preset whose settings these are, or that of the run with changes."""
    from kidseg.config import METHODS, load, preset
    from kidseg.registry import presets

    method = str(header.get("method"))
    if method not in METHODS or "config" not in header:
        return ""
    for name in (None, *presets()):
        try:
            base = None if name is None else preset(name, method)
            wanted, found = (load(METHODS[method], base=each) for each in (base, header["config"]))
        except KidsegError:
            continue
        if _by_input(wanted) == _by_input(found):
            return "the defaults" if name is None else f"preset {name}"
    changed = f"preset {summary['preset']} with changes" if summary.get("preset") else "its own"
    return f"{changed}; --json shows them"


def _by_input(config: Any) -> Any:
    """Settings with the U-Net described by its own input: earlier versions said it otherwise."""
    if not hasattr(config, "network"):
        return config
    return replace(config, unet=config.unet.of_input(config.input_size))


def _training(header: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterable[str]:
    if found := header.get("imported"):
        yield f"by {found['from']}: {found['source']}, {found['configuration']}"
        yield f"{found.get('trainer', 'unknown trainer')}, fold {found['fold']}"
        yield found["checkpoint"]
        return
    if "date" in summary:
        yield f"on {summary['date']}"
    yield f"with kidseg {header.get('kidseg')}"
    if "seed" in header.get("selection", {}):
        yield f"seed {header['selection']['seed']}"
    for stage, result in header.get("selection", {}).get("stages", {}).items():
        yield f"{stage} {result.get('epochs')} epochs"


def _dice(header: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """{stage: {region: Dice}}; earlier versions have the regions among the other metrics."""
    regions = header.get("labels", {}).get("regions", {})
    found = header.get("selection", {}).get("validation", {})
    named = {
        stage: metrics.get("dice") or {name: metrics[name] for name in regions if name in metrics}
        for stage, metrics in found.items()
    }
    return {stage: dice for stage, dice in named.items() if dice}


def _decision(header: Mapping[str, Any], model: Path) -> str:
    """How a model decides between its outputs, if it was calibrated."""
    weights = ", ".join(f"{name} {w:g}" for name, w in decision_of(header, model).items())
    cases = len(header.get("calibration", {}).get("cases", ()))
    of = f", calibrated on {cases} case(s)" if cases else ""
    return f"probabilities are weighted: {weights}{of}" if weights else ""


def _intervals(header: Mapping[str, Any]) -> str:
    """How a model's intervals of volumes came about, if they were calibrated."""
    found = header.get("intervals")
    if not found:
        return ""
    of = found.get("scans") or "case(s)"
    return f"{found['level']:.0%}, of {', '.join(found['ends'])}; by {len(found['cases'])} {of}"


def _labels(names: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def _listed(channels: Iterable[str], unit: str | None, orientation: str | None) -> str:
    parts = [", ".join(channels), f"in {unit}" if unit else ""]
    text = " ".join(part for part in parts if part)
    return f"{text}; orientation: {orientation}" if orientation else text


def _spacing(median_mm: Iterable[float] | None) -> str:
    if not median_mm:
        return ""
    return f"median of the training scans {' x '.join(f'{mm:.3g}' for mm in median_mm)} mm"
