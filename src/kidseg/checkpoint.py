"""Model files, and the training state for resuming an interrupted training.

Both are sealed tensor files (see `kidseg.header`): one digest covers all tensors and the whole
header, and no pickle is ever loaded. A model has tensors by part ("pose.*", "crop.*", "segment.*")
and a header with method, configuration, input, training history and intended use. A training state
has the tensors of the network, of its best weights and of the optimizer. The previous state is kept
as well.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kidseg.errors import KidsegWarning, ModelError, is_out_of_memory
from kidseg.header import FORMAT, KEY, read_header, read_sealed, seal, with_blank_seal
from kidseg.io.atomic import link_or_copy, writing
from kidseg.model_card import CARD, ModelCard
from kidseg.provenance import RESEARCH_USE
from kidseg.records import AFRESH, SEAL, Record, checked

__all__ = [
    "HALF",
    "WEIGHTS",
    "Model",
    "StageProgress",
    "State",
    "by_part",
    "joined",
    "load_model",
    "load_state",
    "read_header",
    "save_model",
    "save_state",
    "state_file",
    "with_description",
]

INTENDED_USE = RESEARCH_USE

WEIGHTS, HALF = "weights", "float16"
"""Entry of a model's header, and its value if the file stores weights in half precision."""

Parts = Mapping[str, Mapping[str, Tensor]]
"""{part: {name: tensor}}."""

DESCRIPTIVE = ("licence", "model_card", "training_range")
"""Entries of a model's header that decide neither labels nor training."""

STATE_KEY = "kidseg-state"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The contents of a model file.

    Attributes:
        header: plain data; see `save_model`.
        parts: tensors.
        sha256: of the file.
    """

    header: Mapping[str, Any]
    parts: Parts
    sha256: str


def save_model(
    path: Path, parts: Parts, header: Mapping[str, Any], *, overwrite: bool = False
) -> str:
    """Write a model file atomically.

    Args:
        path: ends in .safetensors.
        parts: state dictionaries by part; names are joined with a dot.
        header: plain data: "method", "config" (resolved), "plan", "labels", "input",
            "training_set" (digest), "selection" (how it was selected and evaluated), "licence".
            Format version, package version, intended use and the digest are added. With "weights":
            "float16" the weights of convolutions and linear layers are stored in half precision, as
            far as they fit its range, and are float32 again when they are loaded; biases, norms and
            all else stay as they are.
        overwrite: replace an existing file.

    Returns:
        SHA-256 of the file.
    """
    from importlib.metadata import version

    full = {"kidseg": version("kidseg"), "intended_use": INTENDED_USE, **header}
    payload = _serialized(_halved(parts) if full.get(WEIGHTS) == HALF else parts, full, KEY)
    with writing(path, overwrite=overwrite) as file:
        file.write(payload)
    return hashlib.sha256(payload).hexdigest()


def load_model(path: Path) -> Model:
    """Load a model file after verifying it against its digest.

    Raises:
        ModelError: as `read_header`.
    """
    header, payload = read_sealed(path)
    sha256 = hashlib.sha256(payload).hexdigest()
    return Model(header=header, parts=_parts(payload, path), sha256=sha256)


def with_description(
    path: Path, out: Path, description: Mapping[str, Any], *, overwrite: bool = False
) -> str:
    """Write a copy of a model with other descriptive entries in its header, sealed again.

    The weights and all other entries, such as the version of kidseg that trained it, stay.

    Args:
        path: the model.
        out: file of the copy; with `overwrite` it may be the same.
        description: entries of `DESCRIPTIVE`, plain data; a model card is checked.
        overwrite: replace an existing file.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: another entry; or an invalid model card.
        ModelError: see `load_model`.
    """
    if other := sorted(set(description) - set(DESCRIPTIVE)):
        raise ValueError(f"{', '.join(other)} cannot be changed; only {', '.join(DESCRIPTIVE)} can")
    if description.get(CARD) is not None:
        ModelCard.from_dict(description[CARD])
    model = load_model(path)
    return save_model(out, model.parts, {**model.header, **description}, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class StageProgress(Record):
    """How far the training of a stage is; plain data.

    Attributes:
        run: digest of the record of the run; see `kidseg.train.record`.
        stage: its name.
        epoch: the last one that is complete.
        seconds: spent.
        stopped: why the stage ended; None while it goes on.
        best_epoch: of the best validation score; None if no epoch has one, -1 if what the network
            had learned before is better than all epochs.
        log: the lines of all epochs, as in log.jsonl; the first has the validation metrics of a
            network that had learned before, "start".
    """

    run: str
    stage: str
    epoch: int
    seconds: float
    stopped: Literal["epochs", "patience", "budget"] | None
    best_epoch: int | None
    log: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        epochs = [line.get("epoch") for line in self.log]
        if not epochs or epochs != list(range(len(epochs))) or self.epoch != epochs[-1]:
            raise ValueError("the lines of the log are not those of all epochs")
        start = self.log[0].get("start")
        known = (None, *epochs) if start is None else (None, -1, *epochs)
        if self.seconds < 0 or self.best_epoch not in known or not isinstance(start, dict | None):
            raise ValueError("the best epoch, or the time spent, is impossible")


@dataclass(frozen=True, kw_only=True)
class State:
    """A training state: progress, and tensors "net", "best" and "optimizer"."""

    progress: StageProgress
    parts: Parts


def state_file(folder: Path, stage: str) -> Path:
    """The file of a stage's state in a run folder."""
    return folder / f"state-{stage}.safetensors"


def save_state(state: State, path: Path) -> None:
    """Save a training state and keep the previous one."""
    payload = _serialized(state.parts, asdict(state.progress), STATE_KEY)
    if path.exists():
        previous = _previous(path)
        previous.unlink(missing_ok=True)
        link_or_copy(path, previous)
    with writing(path, overwrite=True) as file:
        file.write(payload)


def load_state(path: Path) -> State | None:
    """Load the training state at `path`, on the CPU; None if there is none.

    If the state is damaged or missing, a warning is issued and the previous state is loaded.

    Raises:
        ModelError: "damaged-state": all existing states are damaged; training never restarts
            silently.
    """
    causes = []
    for file in (path, _previous(path)):
        try:
            state = _read_state(file) if file.exists() else None
        except ModelError as error:
            causes.append(error.cause)
            continue
        if state is None:
            causes.append("the training state is missing")
            continue
        if causes:
            text = f"{path}: {causes[0]}; the previous one is used"
            warnings.warn(text, KidsegWarning, stacklevel=2)
        return state
    if not (path.exists() or _previous(path).exists()):
        return None
    raise ModelError(
        f"every saved training state is damaged: {causes[0]}",
        path=path,
        next_step=AFRESH,
        code="damaged-state",
    )


def _read_state(file: Path) -> State:
    code = "damaged-state"
    header, payload = read_sealed(file, STATE_KEY, code=code, next_step=AFRESH)
    try:
        progress = checked(
            StageProgress, {k: v for k, v in header.items() if k not in ("format", SEAL)}
        )
    except ValueError as error:
        raise ModelError(str(error), path=file, next_step=AFRESH, code=code) from error
    return State(progress=progress, parts=_parts(payload, file))


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _serialized(parts: Parts, header: Mapping[str, Any], key: str) -> bytes:
    """A sealed tensor file; the names of tensors are joined with their part's by a dot."""
    from safetensors.torch import save

    tensors = {n: t.detach().to("cpu").contiguous().clone() for n, t in joined(parts).items()}
    own = {k: v for k, v in header.items() if k not in ("format", SEAL)}
    text = with_blank_seal({"format": FORMAT, **own})
    return seal(save(tensors, metadata={key: text}), key)


def _halved(parts: Parts) -> Parts:
    """The parts with weights of two or more axes as float16, if none of them overflows."""

    def halved(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith("weight") or tensor.ndim < 2 or tensor.dtype != torch.float32:
            return tensor
        half = tensor.half()
        return half if bool(half.isfinite().all()) else tensor

    return {
        part: {name: halved(name, tensor) for name, tensor in state.items()}
        for part, state in parts.items()
    }


def _parts(payload: bytes, path: Path) -> Parts:
    """The tensors of a verified file.

    Raises:
        ModelError: "damaged-model": sealed, but not by kidseg: no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(payload)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"its tensors cannot be read: {error}",
            path=path,
            next_step="It was not written by kidseg.",
            code="damaged-model",
        ) from error
    return by_part({n: t.float() if t.dtype == torch.float16 else t for n, t in tensors.items()})


def by_part(tensors: Mapping[str, Tensor]) -> Parts:
    """Tensors by part, from names that are joined with their part's by a dot."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def joined(parts: Parts) -> dict[str, Tensor]:
    """Inverse of `by_part`."""
    return {
        f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }
