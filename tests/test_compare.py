"""Paired statistics: worked out by hand, properties, guards, and what is written."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disks import small_disk
from kidseg.compare import compare, holm
from kidseg.errors import InputError, ResourceError, UsageError
from kidseg.evaluate import METRICS, Row, protocol_named, read_run, summarise
from kidseg.evaluate.summary import COLUMNS, write_csv
from kidseg.io.atomic import write_json

Figures = Mapping[str, Sequence[float | None]]
STRUCTURES = ("kidney", "kidney+tumour", "tumour")


def write_run(
    folder: Path,
    figures: Figures,
    *,
    metric: str = "dice",
    ages: Sequence[float | None] | None = None,
    names: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    reference_ml: float = 10.0,
    protocol: str = "native",
) -> Path:
    """An evaluated folder: {structure: a value per case}; the other metrics are constant."""
    rows = []
    for structure in STRUCTURES:
        for number, value in enumerate(figures.get(structure, [])):
            name = names[number] if names else f"case_{number:03d}"
            constant: dict[str, float | None] = dict.fromkeys(METRICS, 0.5)
            rows.append(
                Row(
                    case=name,
                    patient=patients[number] if patients else name,
                    age_years=ages[number] if ages else None,
                    structure=structure,
                    reference_ml=reference_ml,
                    predicted_ml=9.0,
                    figures={**constant, metric: value},
                )
            )
    folder.mkdir(parents=True)
    write_csv(folder / "cases.csv", COLUMNS, (row.values() for row in rows), overwrite=False)
    summary = summarise(rows, protocol_named(protocol))
    write_json(folder / "summary.json", summary, overwrite=False)
    return folder


def two(
    tmp_path: Path, a: Sequence[float | None], b: Sequence[float | None], **options: Any
) -> Any:
    """The comparison of two runs by one metric of the kidney over all cases."""
    metric = options.get("metric", "dice")
    runs = [write_run(tmp_path / n, {"kidney": v}, **options) for n, v in (("a", a), ("b", b))]
    return one(compare(runs, tmp_path / "out"), metric)


def one(result: dict, metric: str = "dice", structure: str = "kidney", stratum: str = "all") -> Any:
    (found,) = (
        c
        for c in result["comparisons"]
        if (c["metric"], c["structure"], c["stratum"]) == (metric, structure, stratum)
    )
    return found


# Worked out by hand


def test_six_wins(tmp_path: Path) -> None:
    """All six differences positive and distinct: p = 2 / 2^6."""
    b = [0.5, 0.6, 0.7, 0.8, 0.4, 0.3]
    a = [v + 0.01 * (i + 1) for i, v in enumerate(b)]
    found = two(tmp_path, a, b)
    assert (found["wins"], found["ties"], found["losses"], found["n"]) == (6, 0, 0, 6)
    assert found["p"] == pytest.approx(2 / 64)
    assert found["mean_difference"] == pytest.approx(0.035)
    assert found["median_difference"] == pytest.approx(0.035)
    assert found["mean_b"] == pytest.approx(3.3 / 6)
    assert 0.01 <= found["low"] < 0.035 < found["high"] <= 0.06


def test_signed_ranks_with_losses(tmp_path: Path) -> None:
    """Differences +1 +2 +3 +4 +5 +6 -7 (%): W- = 7; of 2^7 sign patterns those with a rank sum of
    at most 7 are the distinct-part partitions of 0..7: 1+1+1+2+2+3+4+5 = 19. So p = 2 * 19 / 128.
    """
    steps = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, -0.07]
    found = two(tmp_path, [0.5 + s for s in steps], [0.5] * 7)
    assert found["p"] == pytest.approx(2 * 19 / 128)
    assert (found["wins"], found["losses"]) == (6, 1)


def test_zero_differences_are_ranked_then_dropped(tmp_path: Path) -> None:
    """0, 1, 2, 3, 4, 5: five signs, all plus: p = 2 / 2^5 (discarding zeros would leave n = 5)."""
    found = two(tmp_path, [0.5, 0.51, 0.52, 0.53, 0.54, 0.55], [0.5] * 6)
    assert (found["wins"], found["ties"]) == (5, 1)
    assert found["p"] == pytest.approx(2 / 32)


def test_pratt_ranks(tmp_path: Path) -> None:
    """0, 0, -1, 2, 3, 4 (%): ranks of the non-zeros are 3..6, so W- = 3. Of 2^4 patterns, a sum of
    at most 3 has: nothing, and {3}: p = 2 * 2 / 16."""
    found = two(tmp_path, [0.5, 0.5, 0.49, 0.52, 0.53, 0.54], [0.5] * 6)
    assert found["p"] == pytest.approx(4 / 16)


def test_equal_runs(tmp_path: Path) -> None:
    found = two(tmp_path, [0.1, 0.5, 0.9, 0.3, 0.2, 0.7], [0.1, 0.5, 0.9, 0.3, 0.2, 0.7])
    assert (found["ties"], found["p"], found["p_holm"]) == (6, 1.0, 1.0)
    assert (found["low"], found["high"]) == (0.0, 0.0)


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    found = two(tmp_path, [0.1 + 0.2] * 6, [0.3] * 6)
    assert found["ties"] == 6 and found["p"] == 1.0


def test_too_few_pairs(tmp_path: Path) -> None:
    found = two(tmp_path, [0.9] * 5, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found["p"] is None and found["p_holm"] is None
    assert "5 pairs" in found["why_no_p"]


def test_few_pairs_have_no_interval(tmp_path: Path) -> None:
    """Of five differences even the range misses the mean in 2 of 2^5 samples, more than 5 %: all
    lie on one side. Of six it is 2 of 2^6.
    """
    b = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    few, enough = (two(tmp_path / str(n), [0.9] * n, b[:n]) for n in (5, 6))
    assert (few["low"], few["high"]) == (None, None) and few["mean_difference"] is not None
    assert 0.3 <= enough["low"] < enough["mean_difference"] < enough["high"] <= 0.8


def test_one_pair_and_none(tmp_path: Path) -> None:
    found = two(tmp_path / "1", [0.9], [0.5])
    assert found["mean_difference"] == pytest.approx(0.4)
    assert (found["low"], found["high"], found["p"]) == (None, None, None)
    found = two(tmp_path / "0", [None], [0.5])
    assert (found["n"], found["n_left_out"], found["mean_a"]) == (0, 1, None)
    assert found["why_no_p"] == "no pairs"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_over_pairs_and_structures(tmp_path: Path) -> None:
    """Three runs and two structures: the smallest of six p values is multiplied by six."""
    rng = np.random.default_rng(0)
    runs = []
    for number in range(3):
        figures = {s: list(rng.uniform(0.3, 0.6, 8) + 0.1 * number) for s in STRUCTURES[:2]}
        runs.append(write_run(tmp_path / f"run{number}", figures))
    result = compare(runs, tmp_path / "out")
    assert [(p["a"], p["b"]) for p in result["pairs"]] == [
        ("run0", "run1"),
        ("run0", "run2"),
        ("run1", "run2"),
    ]
    tested = [c for c in result["comparisons"] if c["metric"] == "dice" and c["p"] is not None]
    assert len(tested) == 6
    assert [c["p_holm"] for c in tested] == pytest.approx(holm([c["p"] for c in tested]))
    smallest = min(tested, key=lambda c: c["p"])
    assert smallest["p_holm"] == pytest.approx(6 * smallest["p"])


@pytest.mark.parametrize(
    ("metric", "a", "b", "difference", "wins"),
    [
        ("dice", 0.9, 0.8, 0.1, 2),
        ("surface_dice", 0.9, 0.8, 0.1, 2),
        ("hd95_mm", 3.0, 5.0, -2.0, 2),
        ("volume_error_ml", -3.0, 2.0, 1.0, 0),  # 3 ml too little is worse than 2 ml too much
    ],
)
def test_which_way_is_better(
    tmp_path: Path, metric: str, a: float, b: float, difference: float, wins: int
) -> None:
    found = two(tmp_path, [a, a], [b, b], metric=metric)
    assert found["mean_difference"] == pytest.approx(difference)
    assert (found["wins"], found["losses"]) == (wins, 2 - wins)


def test_undefined_figures_leave_the_pair_out(tmp_path: Path) -> None:
    found = two(tmp_path, [1.0, None, 3.0], [2.0, 2.0, None], metric="hd95_mm")
    assert (found["n"], found["n_left_out"], found["mean_difference"]) == (1, 2, -1.0)


# Properties


def test_swapping_the_runs_mirrors_the_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 1, 20), rng.uniform(0, 1, 20)
    forth = two(tmp_path / "forth", list(a), list(b))
    back = two(tmp_path / "back", list(b), list(a))
    assert forth["mean_difference"] == pytest.approx(-back["mean_difference"])
    assert (forth["wins"], forth["losses"]) == (back["losses"], back["wins"])
    assert forth["p"] == pytest.approx(back["p"])
    assert forth["low"] == pytest.approx(-back["high"], abs=0.01)


def test_interval_of_many_is_that_of_the_normal(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0.05, 0.1, 400)
    found = two(tmp_path, list(0.5 + d), [0.5] * 400)
    half = 1.96 * d.std(ddof=1) / math.sqrt(400)
    assert found["low"] == pytest.approx(d.mean() - half, abs=half / 10)
    assert found["high"] == pytest.approx(d.mean() + half, abs=half / 10)


def test_interval_covers_as_often_as_it_says(tmp_path: Path) -> None:
    """30 samples with a known mean: about 95 % of the intervals hold it."""
    rng, held = np.random.default_rng(3), 0
    for trial in range(10):
        figures = {s: list(0.4 + rng.normal(0.02, 0.05, 30)) for s in STRUCTURES}
        still = {s: [0.4] * 30 for s in STRUCTURES}
        runs = [write_run(tmp_path / f"{trial}/{n}", f) for n, f in (("a", figures), ("b", still))]
        result = compare(runs, tmp_path / f"{trial}/out")
        held += sum(
            one(result, "dice", s)["low"] <= 0.02 <= one(result, "dice", s)["high"]
            for s in STRUCTURES
        )
    assert 25 <= held <= 30


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for name in "ab":
        write_run(tmp_path / name, {"kidney": list(rng.uniform(0, 1, 12))})
    runs = [tmp_path / "a", tmp_path / "b"]
    for out, seed in (("x", 0), ("y", 0), ("z", 1)):
        compare(runs, tmp_path / out, seed=seed)
    for name in ("compare.csv", "compare.md"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    x, y = (json.loads((tmp_path / o / "compare.json").read_text()) for o in "xy")
    assert x.pop("date") <= y.pop("date") and x == y
    low = [one(json.loads((tmp_path / o / "compare.json").read_text()))["low"] for o in "xz"]
    assert low[0] != low[1]


# Cases and strata


def test_cases_in_one_run_only_are_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"kidney": [0.5, 0.6, 0.7]}, names=["p", "q", "r"])
    b = write_run(tmp_path / "b", {"kidney": [0.6, 0.7, 0.8]}, names=["q", "r", "s"])
    result = compare([a, b], tmp_path / "out")
    (pair,) = result["pairs"]
    assert (pair["n_common"], pair["only_a"], pair["only_b"]) == (2, ["p"], ["s"])
    assert one(result)["mean_difference"] == pytest.approx(0.0)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Only in a, left out: p" in text and "Only in b, left out: s" in text


def test_several_cases_of_a_patient_are_said(tmp_path: Path) -> None:
    options: Any = {"patients": ["one", "one"]}
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}, **options) for n in "ab"]
    (pair,) = compare(runs, tmp_path / "out")["pairs"]
    assert (pair["n_common"], pair["n_patients"]) == (2, 1)
    assert "of 1 patients; each counts once" in (tmp_path / "out" / "compare.md").read_text()


def test_a_patient_counts_once_however_often_scanned(tmp_path: Path) -> None:
    """Patient p: a 0.9, 0.7 against b 0.6, 0.6 is 0.8 against 0.6; q: 0.4 against 0.5.

    By cases the mean difference would be (0.3 + 0.1 - 0.1) / 3 = 0.1, and two wins.
    """
    found = two(tmp_path, [0.9, 0.4, 0.7], [0.6, 0.5, 0.6], patients=["p", "q", "p"])
    assert (found["n"], found["n_left_out"], found["wins"], found["losses"]) == (2, 0, 1, 1)
    assert (found["mean_a"], found["mean_b"]) == pytest.approx((0.6, 0.55))
    assert found["mean_difference"] == pytest.approx((0.2 - 0.1) / 2)


def test_cases_of_a_patient_do_not_add_to_the_evidence(tmp_path: Path) -> None:
    """Six cases of three patients are three pairs: too few for a p."""
    a = [0.6, 0.61, 0.62, 0.63, 0.64, 0.65]
    found = two(tmp_path, a, [0.5] * 6, patients=["p", "p", "q", "q", "r", "r"])
    assert (found["n"], found["wins"], found["p"]) == (3, 3, None)
    assert "3 pairs" in found["why_no_p"]


def test_a_patient_is_averaged_over_the_cases_that_both_runs_have(tmp_path: Path) -> None:
    """p: only its first case counts, 1 - 2; q has none and is left out; r: |-3| and 1 against 0."""
    a, b = [1.0, 9.0, None, -3.0, 1.0], [2.0, None, 4.0, 0.0, 0.0]
    options: Any = {"patients": ["p", "p", "q", "r", "r"], "metric": "volume_error_ml"}
    found = two(tmp_path, a, b, **options)
    assert (found["n"], found["n_left_out"]) == (2, 1)
    assert found["mean_a"] == pytest.approx((1 + 2) / 2)
    assert found["mean_difference"] == pytest.approx((-1 + 2) / 2)


def test_a_patient_is_in_the_band_of_its_youngest_case(tmp_path: Path) -> None:
    options: Any = {"ages": [11.0, 0.5, 3.0, None], "patients": ["p", "p", "q", "q"]}
    runs = [
        write_run(tmp_path / "a", {"kidney": [0.9, 0.7, 0.6, 0.8]}, **options),
        write_run(tmp_path / "b", {"kidney": [0.5] * 4}, **options),
    ]
    found = [c for c in compare(runs, tmp_path / "out")["comparisons"] if c["metric"] == "dice"]
    kidney = [c for c in found if c["structure"] == "kidney"]
    assert [(c["stratum"], c["n"]) for c in kidney] == [
        ("all", 2),
        ("0-1 years", 1),
        ("2-5 years", 1),
    ]
    assert [c["mean_a"] for c in kidney] == pytest.approx([0.75, 0.8, 0.7])


def test_strata_by_age(tmp_path: Path) -> None:
    ages = [0.5, 12.0, 3.0, 0.2, None, 4.0, 11.0]
    a = [0.9, 0.5, 0.7, 0.8, 0.1, 0.7, 0.6]
    options: Any = {"ages": ages}
    runs = [
        write_run(tmp_path / "a", {"kidney": a}, **options),
        write_run(tmp_path / "b", {"kidney": [0.5] * 7}, **options),
    ]
    found = [c for c in compare(runs, tmp_path / "out")["comparisons"] if c["metric"] == "dice"]
    found = [c for c in found if c["structure"] == "kidney"]
    assert found[0]["stratum"] == "all" and found[0]["n"] == 7 and found[0]["p"] is not None
    assert [c["n"] for c in found[1:]] == [2, 2, 2, 1]
    bands = ["0-1 years", "2-5 years", "10-16 years", "unknown"]
    assert [c["stratum"] for c in found[1:]] == bands
    assert [c["mean_difference"] for c in found[1:]] == pytest.approx([0.35, 0.2, 0.05, -0.4])
    assert all(c["p"] is None and "not tested" in c["why_no_p"] for c in found[1:])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n / "eval", {"kidney": [0.5, 0.6]}) for n in ("x", "y")]
    result = compare(runs, tmp_path / "out")
    assert [run["name"] for run in result["runs"]] == ["x/eval", "y/eval"]


# What is written


def test_files_agree_with_what_is_returned(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"tumour": [0.5] * 7})
    b = write_run(tmp_path / "b", {"tumour": [0.1, 0.2, 0.3, 0.4, 0.45, 0.46, 0.6]})
    result = compare([a, b], tmp_path / "out")
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        f"compare.{e}" for e in ("csv", "json", "md", "html")
    }
    assert json.loads((out / "compare.json").read_text()) == result
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["comparisons"])
    for row, found in zip(rows, result["comparisons"], strict=True):
        assert row["metric"] == found["metric"] and int(row["n"]) == found["n"]
        assert row["p"] == ("" if found["p"] is None else repr(found["p"]))
    found = one(result, "dice", "tumour")
    text = (out / "compare.md").read_text()
    assert f" {found['p']:.4g} |" in text
    assert max(map(len, text.splitlines())) <= 80


def test_tables_with_many_ages_fit_a_terminal(tmp_path: Path) -> None:
    ages = [0.1, 1.5, 3.0, 7.0, 12.0, 15.9]
    runs = [
        write_run(tmp_path / name, {s: [k / 7, *[0.12345] * 5] for s in STRUCTURES}, ages=ages)
        for k, name in enumerate(("a" * 40, "b" * 40))
    ]
    compare(runs, tmp_path / "out")
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 4 * len(STRUCTURES) * 4 and max(map(len, tables)) <= 80


# Guards


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"kidney": [0.5, 0.6]})
    wrong = {
        "different-protocols": write_run(tmp_path / "p", {"tumour": [0.5]}, protocol="kits23"),
        "different-references": write_run(tmp_path / "r", {"kidney": [0.5, 0.6]}, reference_ml=11),
        "no-common-cases": write_run(tmp_path / "n", {"kidney": [0.5]}, names=["other"]),
        "not-evaluated": tmp_path,
    }
    for code, run in wrong.items():
        with pytest.raises(InputError) as raised:
            compare([a, run], tmp_path / "out")
        assert raised.value.code == code and raised.value.path == str(run)
    for runs, code in (([a], "too-few-runs"), ([], "too-few-runs"), ([a, a], "same-run")):
        with pytest.raises(UsageError) as raised:
            compare(runs, tmp_path / "out")
        assert raised.value.code == code
        assert raised.value.next_step
    assert list((tmp_path / "out").iterdir()) == []


def test_the_rule_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, {"kidney": [0.5, 0.6]}) for name in "ab")
    known = json.loads((b / "summary.json").read_text())
    (name, value), *_ = known["rules"]["tolerance_mm"].items()
    for change, rule in (
        ({"protocol": "kits23"}, "protocol"),
        ({"rules": {**known["rules"], "sd": "other"}}, "rules.sd"),
        (
            {
                "rules": {
                    **known["rules"],
                    "tolerance_mm": {**known["rules"]["tolerance_mm"], name: 7},
                }
            },
            f"rules.tolerance_mm.{name}",
        ),
        ({"rules": {**known["rules"], "more": 5}}, "rules.more"),
        ({"rules": {}}, "rules.labels"),
    ):
        write_json(b / "summary.json", {**known, **change}, overwrite=True)
        with pytest.raises(InputError, match=f"evaluated with {re.escape(rule)} ") as raised:
            compare([a, b], tmp_path / "out")
        assert raised.value.path == str(b) and str(a) in raised.value.cause
        if rule.endswith(f".{name}"):
            assert "'7'" in raised.value.cause and f"'{value}'" in raised.value.cause


def test_the_table_says_why_there_is_no_p(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5] * 5, "tumour": [0.5] * 6}) for n in "ab"]
    compare(runs, tmp_path / "out")
    text = " ".join((tmp_path / "out" / "compare.md").read_text().split())
    assert "No p for kidney: 5 pairs; below 6 no difference can reach 0.05." in text
    assert "No p for kidney+tumour: no pairs." in text and "No p for tumour" not in text


def test_tables_without_time_points_are_read(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    for run in runs:
        with (run / "cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "time_point"]
        cells = [[row[name] for name in names] for row in rows]
        write_csv(run / "cases.csv", names, cells, overwrite=True)
    assert [row.time_point for row in read_run(runs[0]).rows] == ["", ""]
    compare(runs, tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("case,", "name,", "line 1: the columns"),
        ("0.5", "nan", "line 2: 'nan' is not finite"),
        ("0.5", "half", "line 2: could not convert"),
        ("case_000,case_000", ",case_000", "line 2: a required cell is empty"),
        ("case_001,", "case_000,", "occurs twice"),
        ("case_000,,", "case_000,-3,", "line 2: negative age -3"),
        ("case_001,", "case_001,,", "line 3"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    table = runs[1] / "cases.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=words) as raised:
        compare(runs, tmp_path / "out")
    assert raised.value.code == "damaged-table"


def figure(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Another value in the figures of Dice of the kidney; "lost" takes it away."""

    def change(summary: dict[str, Any]) -> None:
        dice = summary["structures"]["kidney"]["dice"]
        dice |= changes
        for name in [name for name, value in changes.items() if value == "lost"]:
            del dice[name]

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "summary"),
        ('{"protocol": "native"}', "structures"),
        (lambda known: known.pop("rules"), "rules"),
        (lambda known: known.update(structures=[]), "structures"),
        (lambda known: known.update(protocol=3), "protocol"),
        (lambda known: known["structures"].pop("kidney"), "'kidney' is not in the summary"),
        (lambda known: known["structures"]["kidney"].pop("hd95_mm"), "kidney.hd95_mm"),
        (figure(mean="0.5"), "kidney.dice.mean"),
        (figure(mean=float("nan")), "kidney.dice.mean"),
        (figure(n=-1), "kidney.dice.n"),
        (figure(n_empty="lost"), "kidney.dice.n_empty"),
        (lambda known: known.update(not_evaluated=5), "not_evaluated"),
        (lambda known: known.update(findings=[{}]), "findings"),
    ],
)
def test_damaged_summaries_are_refused(tmp_path: Path, damage: Any, words: str) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    file = runs[0] / "summary.json"
    if callable(damage):
        known = json.loads(file.read_text())
        damage(known)
        damage = json.dumps(known)
    file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(InputError, match=words) as raised:
        compare(runs, tmp_path / "out")
    assert raised.value.code == "damaged-table" and raised.value.next_step


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    (runs[1] / "cases.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text") as raised:
        compare(runs, tmp_path / "out")
    assert raised.value.path == str(runs[1] / "cases.csv")


def test_results_are_not_replaced_unasked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    compare(runs, tmp_path / "out")
    with pytest.raises(UsageError) as raised:
        compare(runs, tmp_path / "out")
    assert raised.value.code == "output-exists"
    compare(runs, tmp_path / "out", overwrite=True)


def test_cases_that_could_not_be_evaluated_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps({**summary, "not_evaluated": ["case_77"]}))
    result = compare(runs, tmp_path / "out")
    assert [run["not_evaluated"] for run in result["runs"]] == [[], ["case_77"]]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Could not be evaluated in b, left out: case_77" in text


def test_what_was_noticed_in_the_evaluations_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6]}) for n in "ab"]
    summary = json.loads((runs[1] / "summary.json").read_text())
    noticed = [{"code": "missing-prediction"}, {"code": "missing-prediction"}, {"code": "x"}]
    (runs[1] / "summary.json").write_text(json.dumps({**summary, "findings": noticed}))
    result = compare(runs, tmp_path / "out")
    assert [run["findings"] for run in result["runs"]] == [{}, {"missing-prediction": 2, "x": 1}]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Noticed in b, see its summary.json: 2 missing prediction, 1 x" in text


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("pages", [1, 2, 4])
def test_a_disk_that_is_really_full_holds_no_half_comparison(tmp_path: Path, pages: int) -> None:
    runs = [write_run(tmp_path / n, {"kidney": [0.5, 0.6, 0.7]}) for n in "ab"]
    with small_disk(tmp_path / "disk", 4096 * pages) as disk:
        with pytest.raises(ResourceError) as caught:
            compare(runs, disk / "out")
        assert caught.value.code == "disk-full" and str(disk / "out") in str(caught.value.path)
        assert not [path for path in disk.rglob("*") if path.is_file()]


def test_a_table_that_excel_saved_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {"kidney": [0.5, 0.6, 0.7]})
    before = read_run(run).rows
    table = run / "cases.csv"
    text = table.read_text().replace("\n", "\r\n")
    table.write_bytes(text.encode("utf-8-sig"))
    assert read_run(run).rows == before
