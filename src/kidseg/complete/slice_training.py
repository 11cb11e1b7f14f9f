"""Train the networks of a model further on the drawn slices of one scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kidseg.checkpoint import Model, save_model
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import prepare
from kidseg.complete.drawing import Drawing, as_training_labels
from kidseg.config import METHODS, load
from kidseg.device import as_fast, choose_device, tune_allocator
from kidseg.errors import UsageError
from kidseg.header import ONLY_IN
from kidseg.labels import LabelSchema
from kidseg.meaning import RENAL
from kidseg.members import CALIBRATED, as_one, combined, members_of
from kidseg.methods import Method, method_named
from kidseg.nets.exported import GRAPH
from kidseg.plan import Plan
from kidseg.registry import BY_KIDNEY
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.predictor import Predictor
from kidseg.segment.trained_method import damaged_if_invalid, target_of
from kidseg.train.loop import Run, fit
from kidseg.train.tuning import load_weights

__all__ = ["TrainingProgress", "check_trainable", "tuned"]

_EPOCHS = 5
# Of the model's own learning rate; decay of the moving average of the weights. Source: chosen on
# digital patients of seed 9191, see docs/complete.md.
_RATE = 1 / 3
_AVERAGE = 0.95
# Slices of a step, at most: drawn slices are few, and a member that was trained on a GPU has more.
_BATCH = 8
_STAGE = "segment"
_IGNORE = 255

TrainingProgress = Callable[[int, int, int, int], None]
"""Called with (index of the network, number of networks, epochs done, total epochs)."""


def check_trainable(predictor: Predictor) -> list[Model]:
    """The members of a predictor's model, if all can be trained further on slices.

    Raises:
        UsageError: "not-trainable": a member's networks are exported, or see each kidney alone.
    """
    members = members_of(combined(predictor.paths))
    for member in members:
        name = str(member.header.get("method"))
        if any(GRAPH in tensors for tensors in member.parts.values()):
            reason = "its networks are ONNX graphs"
        elif name in BY_KIDNEY:
            reason = f"method '{name}' segments each kidney that it finds for itself"
        else:
            continue
        raise UsageError(
            f"the model cannot be trained further on slices: {reason}",
            path=predictor.path,
            code="not-trainable",
            next_step="Name a model of another method with -m, or leave -m out for the starter.",
        )
    return members


def tuned(
    predictor: Predictor,
    members: Sequence[Model],
    drawing: Drawing,
    steps: int,
    seed: int,
    device: str,
    progress: TrainingProgress,
) -> Predictor:
    """A predictor whose networks were trained further on the drawn slices, which it keeps.

    Only members that count in the scan are trained, and of these only networks that segment; those
    that find pose and region stay. Nothing is kept out to select weights by: the moving average of
    the last is used.

    Args:
        predictor: of the model to start from.
        members: of that model; see `check_trainable`.
        drawing: the scan.
        steps: of each network.
        seed: of training.
        device: see `choose_device`.
        progress: called after each epoch.

    Raises:
        ModelError, ResourceError: see `fit`.
    """
    tune_allocator()
    epochs = min(_EPOCHS, steps)
    of_epoch = -(-steps // epochs)
    trained = []
    if predictor.only_in:
        members = list(compress(members, predictor.counting(drawing.scan.grid)))
    for number, member in enumerate(members):
        with damaged_if_invalid(predictor.path):
            method = _method(member, epochs, of_epoch, device, predictor.path)
            load_weights(method, member.parts)
        _train(method, predictor.schema, drawing, seed, partial(progress, number, len(members)))
        trained.append(_as_model(member, method))
    with TemporaryDirectory(prefix="kidseg-") as folder:
        path = Path(folder) / "model.safetensors"
        model = trained[0] if len(trained) == 1 else as_one(trained)
        sha256 = save_model(path, model.parts, model.header)
        ready = load_predictor(path, device, predictor.adapt)
    start = {"path": str(predictor.path), "sha256": predictor.sha256}
    facts = {**drawing.facts, "steps": epochs * of_epoch, "seed": seed, "start": start}
    return replace(
        ready,
        path=predictor.path,
        paths=predictor.paths,
        sha256=sha256,
        drawn=replace(drawing.drawn, facts=facts),
    )


def _method(member: Model, epochs: int, steps: int, device: str, path: Path) -> Method:
    """The method of a model, with settings to train it further, and new networks."""
    header = member.header
    name = str(header["method"])
    config: Any = load(METHODS[name], base=header["config"])
    own = config.segment
    stage = replace(
        own,
        epochs=epochs,
        batch_size=min(own.batch_size, _BATCH),
        min_epochs=0,
        patience=None,
        budget_s=None,
        steps=steps,
        average=_AVERAGE,
        optimizer=replace(own.optimizer, learning_rate=_RATE * own.optimizer.learning_rate),
    )
    cohort = replace(config.cohort, small_share=0.0, hard_share=0.0)
    hardware = choose_device(device, as_fast(config.precision))
    return method_named(name).build(
        replace(config, segment=stage, cohort=cohort),
        target_of(header),
        Plan.from_dict(header["plan"], path),
        device=hardware,
    )


def _train(
    method: Method,
    schema: LabelSchema,
    drawing: Drawing,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """Train the networks that segment on the drawn slices.

    `progress` is called with (epochs done, total epochs).
    """
    subject = prepare(
        drawing.scan,
        method.material(method.config, method.plan),
        method.plan.channels,
        name=drawing.name,
        labels=as_training_labels(drawing, _IGNORE),
        ignore_label=_IGNORE,
    )
    subject = replace(subject, renal=schema.ids_of(*RENAL))
    cohort = Cohort(
        training=(subject,),
        validation=(subject,),
        schema=schema,
        target=method.target,
        plan=method.plan,
        config=method.config.cohort,
    )
    with TemporaryDirectory(prefix="kidseg-") as folder:
        run = Run(
            folder=Path(folder),
            device=method.device.torch,
            seed=seed,
            precision=method.device.precision,
            on_epoch=lambda _, done, total, line: progress(done, total),
        )
        epoch = count(1)

        def validate() -> dict[str, float]:
            return {"score": float(next(epoch))}  # the last is the best

        fitted = [
            fit(replace(stage, validate=validate), run)
            for stage in method.stages(cohort)
            if stage.name == _STAGE
        ]
    assert len(fitted) == 1


def _as_model(member: Model, method: Method) -> Model:
    """A trained method as a model of one scan, without what was calibrated for other weights."""
    header = {k: v for k, v in member.header.items() if k not in (*CALIBRATED, ONLY_IN, "sha256")}
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    return Model(header=header, parts=parts, sha256="")
