"""The command `config`, which prints settings to edit and give back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from kidseg.cli.options import AsJson, Config, Preset, Quiet, Set, argument
from kidseg.cli.terminal import print_result
from kidseg.errors import UsageError
from kidseg.registry import METHODS

__all__ = ["config"]

_OTHERS = ("phantom", "study")


def config(
    method: Annotated[
        str,
        argument(
            help=f"One of {', '.join((*METHODS, *_OTHERS))}.",
            autocompletion=lambda: [*METHODS, *_OTHERS],
        ),
    ],
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print every setting with its meaning, as TOML to edit and give back with --config.

    Example: kidseg config homogenized --preset demo > settings.toml
    """
    from kidseg import config as settings

    if method not in (*METHODS, *_OTHERS):
        raise UsageError(
            f"there are no settings of '{method}'",
            next_step=f"Choose one of {', '.join((*METHODS, *_OTHERS))}.",
            code="unknown-method",
        )
    kinds = {**settings.METHODS, "phantom": settings.PhantomConfig}
    if preset is not None and method not in METHODS:
        raise UsageError(
            f"'{method}' has no presets", next_step="Leave out --preset.", code="unknown-preset"
        )
    if method == "study":
        from kidseg.study.example import EXAMPLE, example

        if config is not None or set_:
            raise UsageError(
                "the settings of a study are written in its file",
                next_step="Leave out --config and --set, and edit what is printed.",
                code="study-settings",
            )
        chosen, text = EXAMPLE, example()
    else:
        base = None if preset is None else settings.preset(preset, method)
        chosen = settings.load(kinds[method], base=base, file=config, overrides=set_ or ())
        text = settings.explain(chosen, _title(method, preset))
    result = {
        "method": method,
        "preset": preset,
        "settings": asdict(chosen),
        "meanings": settings.meanings(type(chosen)),
    }
    print_result(result, text.rstrip("\n"), as_json, quiet)


def _title(method: str, preset: str | None) -> str:
    source = "" if preset is None else f", preset {preset}"
    training = f"kidseg train DATASET -o RUN --method {method}"
    command = "kidseg phantom OUT" if method == "phantom" else training
    return (
        f'Settings of {method}{source}. "null" stands for no value.'
        f"\n\nTo use them: {command} --config FILE"
    )
