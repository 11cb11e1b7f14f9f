"""kidseg contours: volumes from contours alone, and what cannot be told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from annotated_folders import Roi, circle, square, structure_set
from commands import call_cli
from dicom_files import SPACING, save, series
from kidseg.contours import ContourVolume, contour_volumes, measure_contours
from kidseg.errors import InputError

ML = SPACING[0] / 1000  # of a square millimetre in a slice


def volumes(tmp_path: Path, *rois: Roi, **elements: object) -> tuple[ContourVolume, ...]:
    ds = structure_set(rois)
    for name, value in elements.items():
        setattr(ds, name, value)
    return contour_volumes(save(ds, tmp_path / "rs.dcm"))


def only(tmp_path: Path, contours: Sequence[np.ndarray], **fields: object) -> ContourVolume:
    (found,) = volumes(tmp_path, Roi(name="kidney", contours=contours, **fields))  # type: ignore[arg-type]
    return found


def codes(one: ContourVolume) -> set[str]:
    return {finding.code for finding in one.findings}


def test_the_volume_of_a_cylinder(tmp_path: Path) -> None:
    found = only(tmp_path, [circle(k, 6.0, points=400) for k in range(5)])
    assert found.volume_ml == pytest.approx(np.pi * 36 * 5 * ML, rel=1e-3)
    assert (found.n_planes, found.n_contours, found.reason) == (5, 5, "") and not found.findings
    assert found.spacing_mm == pytest.approx(2.5)


def test_holes_and_keyholes_are_left_out(tmp_path: Path) -> None:
    outer, hole = square(1, (4, 4), (20, 20)), square(1, (8, 8), (16, 16))
    keyhole = np.vstack([outer, outer[:1], hole[::-1], hole[-1:]])
    area = (16 * 16 - 8 * 8) * SPACING[1] * SPACING[2]
    up = np.array([0, 0, SPACING[0]])
    for contours in ([outer, hole, outer + up, hole + up], [keyhole, keyhole + up]):
        found = only(tmp_path, contours)
        assert found.volume_ml == pytest.approx(2 * area * ML, rel=1e-6)
        assert codes(found) == ({"nested-contours"} if len(contours) == 4 else set())


@pytest.mark.parametrize("turn", [[0, 2, 1], [2, 0, 1], [1, 0, 2], "oblique"])
def test_the_volume_is_the_same_in_every_orientation(tmp_path: Path, turn: list[int] | str) -> None:
    contours = [circle(k, 6.0) for k in range(4)]
    matrix = np.eye(3)
    if turn == "oblique":
        a, b = np.radians([25, 40])
        matrix = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        matrix = matrix @ np.array(
            [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
        )
    else:
        matrix = matrix[turn]
    expected = only(tmp_path, contours).volume_ml
    turned = only(tmp_path, [points @ matrix.T for points in contours])
    assert turned.volume_ml == pytest.approx(expected, rel=1e-4) and not turned.findings


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    one = only(tmp_path, [circle(2)])
    assert one.volume_ml is None and one.spacing_mm is None and "one plane" in one.reason
    uneven = only(tmp_path, [circle(k) for k in (0, 1, 2.4, 3)])
    assert uneven.volume_ml is None and "unevenly" in uneven.reason
    none = only(tmp_path, [])
    assert none.volume_ml is None and none.reason == "no closed contours"
    points = only(tmp_path, [circle(1)[:1]], kind="POINT")
    assert points.volume_ml is None and codes(points) == {"point-contours"}
    opened = only(tmp_path, [circle(1), circle(2)], kind="OPEN_NONPLANAR")
    assert opened.volume_ml is None and opened.reason == "open contours"
    tilted = circle(3) @ np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    across = only(tmp_path, [circle(1, 7.0), circle(2), tilted])
    assert across.volume_ml is None and across.reason == "contour orientation"


def test_contours_that_lie_a_little_off_their_slice_do_not_make_slices_thinner(
    tmp_path: Path,
) -> None:
    """Two bodies in each of three slices, 2.5 mm apart, one of them a little off."""
    pairs = [(circle(k, 3.0, (-5.0, -12.0)), circle(k, 3.0, (4.0, -4.0))) for k in (1, 2, 3)]
    for off_mm, is_told in ((0.1, True), (0.3, False)):
        found = only(tmp_path, [c for a, b in pairs for c in (a, b + np.array([0.0, 0.0, off_mm]))])
        assert (found.volume_ml is not None) == is_told
        if is_told:
            assert found.volume_ml == pytest.approx(2 * np.pi * 9 * 3 * ML, rel=0.01)
        else:
            assert "unevenly" in found.reason


def test_a_contour_that_goes_round_twice_is_said(tmp_path: Path) -> None:
    found = only(tmp_path, [np.vstack([circle(k), circle(k)]) for k in (1, 2)])
    assert codes(found) == {"self-crossing-contours"}


def test_gaps_are_not_filled_and_said(tmp_path: Path) -> None:
    found = only(tmp_path, [circle(k, 6.0, points=400) for k in (0, 1, 4, 5)])
    assert found.volume_ml == pytest.approx(np.pi * 36 * 4 * ML, rel=1e-3)
    assert codes(found) == {"contour-gap"} and "(2)" in found.findings[0].cause


def test_sparse_contours_beside_dense_ones_are_said(tmp_path: Path) -> None:
    dense, sparse = volumes(
        tmp_path,
        Roi(name="kidney", contours=[circle(k) for k in range(5)]),
        Roi(name="tumour", contours=[circle(k, 2.0) for k in (0, 2, 4)]),
    )
    assert not dense.findings and codes(sparse) == {"denser-planes"}


def test_the_stored_volume_is_beside_it(tmp_path: Path) -> None:
    contours = [circle(k, 6.0, points=400) for k in range(5)]
    true_ml = np.pi * 36 * 5 * ML
    found = only(tmp_path, contours, volume_ml=true_ml / 1.04)
    assert found.difference == pytest.approx(0.04, abs=2e-3) and not found.findings
    found = only(tmp_path, contours, volume_ml=true_ml / 2)
    assert codes(found) == {"volume-differs"} and "+100%" in found.findings[0].cause


def test_side_number_tracking_and_time_point(tmp_path: Path) -> None:
    (found,) = volumes(
        tmp_path,
        Roi(name="RTKIDNEY2", contours=[circle(k) for k in range(3)], tracking_id="T-2"),
        ClinicalTrialTimePointID="Pre-dose",
    )
    said = found.as_dict()
    assert (said["side"], said["counted"], said["tracking_id"]) == ("right", 2, "T-2")
    assert said["time_point"] == "Pre-dose" and said["tracking_uid"]
    assert "P1" not in json.dumps(said), "no Patient ID"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = call_cli("contours", *arguments)
    out, err = capsys.readouterr()
    return code, out, err


def saved(folder: Path, name: str, *contours: np.ndarray) -> Path:
    return save(structure_set([Roi(name=name, contours=contours)]), folder / f"{name}.dcm")


@pytest.mark.filterwarnings("default::kidseg.errors.KidsegWarning")
def test_the_command_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", "first", circle(0), circle(1))
    saved(tmp_path / "b", "second", circle(0))
    series(tmp_path / "ct")
    code, out, err = run(capsys, str(tmp_path))
    assert (code, out.count("structure ")) == (0, 1), (out, err)
    assert "first" in out and "cannot tell: second.dcm, 'second': one plane only" in out
    code, out, _ = run(capsys, str(tmp_path), "--json")
    rows = json.loads(out)["structures"]
    assert [row["name"] for row in rows] == ["first", "second"] and rows[1]["volume_ml"] is None
    assert run(capsys, str(tmp_path), "--quiet") == (0, "", "")


def test_files_of_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in downloads of The Cancer Imaging Archive, where every file is 1-1.dcm."""
    ds = structure_set([Roi(name="kidney", contours=[circle(0), circle(1)])])
    long = "one-patient-with-a-very-long-folder"
    for folder in (long, "two"):
        (tmp_path / folder).mkdir()
        save(ds, tmp_path / folder / "1-1.dcm")
    out = run(capsys, str(tmp_path))[1]
    assert f"{long}/1-1.dcm" in out and "two/1-1.dcm" in out
    assert max(map(len, out.splitlines())) <= 80
    out = run(capsys, str(tmp_path / long))[1]
    assert "1-1.dcm" in out and long not in out


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, "good", circle(0), circle(1))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(good.read_bytes()[:600])
    assert run(capsys, str(bad))[0] == 3
    code, out, err = run(capsys, str(good), str(bad), "--json")
    answer = json.loads(out)
    assert code == 4 and len(answer["structures"]) == 1 and "1 of 2 files" in err
    assert answer["failed"][0]["path"] == str(bad)
    (tmp_path / "empty").mkdir()
    code, out, _ = run(capsys, str(tmp_path / "empty"), "--json")
    assert code == 3 and json.loads(out)["error"]["code"] == "no-structure-sets"
    assert run(capsys)[0] == 2
    code, _, err = run(capsys, str(tmp_path / "missing"))
    assert code == 3 and "no such file" in err and "Check the path" in err


def test_a_structure_with_errors_has_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured all the same; what only cannot be told is no error."""
    whole = Roi(name="kidney", contours=[circle(k) for k in range(3)])
    opened = Roi(name="cyst", contours=[circle(1), circle(2)], kind="OPEN_NONPLANAR")
    save(structure_set([whole, opened]), tmp_path / "rs.dcm")
    code, out, err = run(capsys, str(tmp_path / "rs.dcm"))
    assert code == 4 and "1 of 2 structures have errors" in err
    assert "error: " in " ".join(out.split()), "a long path ends the line"
    assert run(capsys, str(saved(tmp_path, "one-plane", circle(0))))[0] == 0


def test_all_files_failing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("no DICOM")
    code, out, _ = run(capsys, str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    assert code == 4 and len(json.loads(out)["failed"]) == 2


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    image = next(series(tmp_path / "ct").iterdir())
    with pytest.raises(InputError) as caught:
        contour_volumes(image)
    assert caught.value.code == "not-a-structure-set"
    assert measure_contours([image])[0] == ()
