"""Data sets of DICOM series and annotations: which belongs to which, whatever the folders."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian

from annotated_folders import Roi, annotated, circle, headers_of, square, structure_set
from commands import call_cli
from dicom_files import body, placed, save, series
from kidseg.cases import Case, Survey, open_dataset, survey_dataset
from kidseg.cases.reading import CaseReader
from kidseg.cases.roi_rules import ROI_RULES, RoiRules, load_rules
from kidseg.check import check
from kidseg.errors import InputError, KidsegWarning, UsageError
from kidseg.io import ReadOptions, read
from kidseg.io.dicom_source import read_source
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.orientation import reorient
from kidseg.io.structures import Annotation, Part
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.segment.sources import find_scans
from kidseg.splits import split
from kidseg.store.files import dataset_facts, source_files
from labelled_series import ORIGIN

KIDNEY = Roi(name="Kidney_R", contours=[circle(k, 6.0) for k in (1, 2, 3)])
TUMOUR = Roi(name="tumour", contours=[square(2, (10, 12), (14, 18))])
BODY = Roi(name="BODY", contours=[circle(2, 12.0)])


def codes(survey: Survey) -> list[str]:
    return sorted(finding.code for finding in survey.findings)


def only_case(survey: Survey) -> Case:
    (case,) = survey.dataset.cases
    return case


def voxels(case: Case, survey: Survey) -> np.ndarray:
    found = CaseReader.of_dataset(survey.dataset).read(case)
    assert found.labels is not None
    return found.labels.data[0].numpy()


def cohort(root: Path, patients: Sequence[str] = ("A", "B", "C"), times: int = 1) -> Path:
    """Patients in folders of their names, each with studies of one annotated series."""
    for n, patient in enumerate(patients):
        for time in range(times):
            annotated(
                root / f"Meier^{patient}" / f"study{time}",
                [KIDNEY, TUMOUR, BODY],
                uid=f"1.2.{n}.{time}",
                patient=f"Meier-{patient}",
                study=f"1.{n}.{time}",
            )
    return root


def test_a_series_and_its_annotation_are_a_case(tmp_path: Path) -> None:
    annotated(tmp_path, [KIDNEY, TUMOUR, BODY])
    survey = survey_dataset(tmp_path)
    case = only_case(survey)
    assert survey.dataset.layout == "annotated" and survey.dataset.channels == ("CT",)
    assert survey.dataset.schema.names == {1: "kidney", 2: "tumour"}
    assert codes(survey) == ["structures-without-label"]
    assert survey.structures == {
        "kidney": {"Kidney_R": 1},
        "tumour": {"tumour": 1},
        "": {"BODY": 1},
    }
    assert case.age_years == 4 and case.side is None
    values = voxels(case, survey)
    assert values.shape == (6, 32, 40) and set(np.unique(values)) == {0, 1, 2}
    assert (values[2] == 2).sum() == 24 and (values == 1).sum() > 200


def test_folders_and_names_of_files_mean_nothing(tmp_path: Path) -> None:
    cohort(tmp_path / "tree")
    tree = survey_dataset(tmp_path / "tree")
    files = sorted(file for file in (tmp_path / "tree").rglob("*") if file.is_file())
    order = np.random.default_rng(0).permutation(len(files))
    (tmp_path / "flat").mkdir()
    for name, k in enumerate(order):
        shutil.copy(files[k], tmp_path / "flat" / f"{name}")
    flat = survey_dataset(tmp_path / "flat")
    assert [c.id for c in flat.dataset.cases] == [c.id for c in tree.dataset.cases]
    assert [c.patient for c in flat.dataset.cases] == [c.patient for c in tree.dataset.cases]
    for one, other in zip(flat.dataset.cases, tree.dataset.cases, strict=True):
        assert np.array_equal(voxels(one, flat), voxels(other, tree))
        assert len(source_files(one)) == len(source_files(other)) == 7


def test_names_of_cases_tell_no_patient(tmp_path: Path) -> None:
    survey = survey_dataset(cohort(tmp_path))
    for case in survey.dataset.cases:
        assert re.fullmatch("[0-9a-f]{8}_[0-9a-f]{8}", case.id)
        assert re.fullmatch("[0-9a-f]{8}", case.patient)


def test_times_of_one_patient_stay_together_in_splits(tmp_path: Path) -> None:
    survey = survey_dataset(cohort(tmp_path, times=2))
    assert len(survey.dataset.cases) == 6
    assert len({case.patient for case in survey.dataset.cases}) == 3
    patient = {case.id: case.patient for case in survey.dataset.cases}
    for fold in split(survey.dataset.cases, folds=3, seed=1):
        assert len(fold.validation) == 2
        assert len({patient[case] for case in fold.validation}) == 1
        assert not {patient[c] for c in fold.train} & {patient[c] for c in fold.validation}


def test_times_of_a_patient_are_numbered_unless_an_annotation_states_them(tmp_path: Path) -> None:
    for n, date in enumerate(["20240301", "20231115", "20240301", ""]):
        path = annotated(tmp_path / f"{n}", [KIDNEY], uid=f"1.2.{n}", study=f"1.{n}", date=date)
    annotated(tmp_path / "other", [KIDNEY], uid="1.2.9", study="1.9", date="20250101", patient="P2")

    def times() -> list[str]:
        cases = survey_dataset(tmp_path).dataset.cases
        assert len({case.patient for case in cases}) == 2
        by_uid = {case.annotation.series: case.time_point for case in cases if case.annotation}
        return [by_uid[uid] for uid in sorted(by_uid)]

    assert times() == ["2", "1", "2", "", "1"]
    ds = dcmread(path)
    ds.ClinicalTrialTimePointDescription = "Post-chemotherapy #1"
    save(ds, path)
    assert times() == ["2", "1", "2", "Post-chemotherapy #1", "1"]


def test_several_series_of_a_study(tmp_path: Path) -> None:
    path = annotated(tmp_path / "a", [KIDNEY], uid="1.2.3")
    annotated(tmp_path / "b", [TUMOUR], uid="1.2.4")
    series(tmp_path / "c", uid="1.2.5")
    path.rename(tmp_path / "b" / "of a")
    survey = survey_dataset(tmp_path)
    assert len(survey.dataset.cases) == 2 and len(survey.dataset.unlabelled) == 1
    by_series = {c.annotation.series: c for c in survey.dataset.cases if c.annotation}
    assert set(np.unique(voxels(by_series["1.2.3"], survey))) == {0, 1}
    assert set(np.unique(voxels(by_series["1.2.4"], survey))) == {0, 2}
    (other,) = survey.dataset.unlabelled
    assert CaseReader.of_dataset(survey.dataset).read(other).labels is None


def test_phases_of_one_series_are_cases_of_their_own(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.AcquisitionNumber, ds.SOPInstanceUID = 1 + k // 6, f"1.2.50.{k}"

    depths = np.tile(np.arange(6) * 2.5, 2)
    series(tmp_path / "ct", np.concatenate([body(1), body(2)]), positions=placed(depths), edit=edit)
    headers = [h for h in headers_of(tmp_path / "ct") if h.AcquisitionNumber == 2]
    save(structure_set([KIDNEY], headers), tmp_path / "rs.dcm")
    survey = survey_dataset(tmp_path)
    assert not [f for f in survey.findings if f.severity == "error"]
    case, (other,) = only_case(survey), survey.dataset.unlabelled
    assert case.id != other.id and case.patient == other.patient
    image = CaseReader.of_dataset(survey.dataset).read(case).image.data
    assert np.array_equal(image[0].numpy(), body(2)) and voxels(case, survey).any()


def test_annotations_without_images_are_named(tmp_path: Path) -> None:
    annotated(tmp_path / "a", [KIDNEY])
    lost = annotated(tmp_path / "b", [KIDNEY], uid="1.2.4", study="1.5")
    shutil.rmtree(tmp_path / "b" / "images")
    survey = survey_dataset(tmp_path)
    (missing,) = [f for f in survey.findings if f.code == "missing-images"]
    assert missing.path == str(lost) and "kidseg contours" in missing.next_step
    assert len(survey.dataset.cases) == 1
    with pytest.warns(KidsegWarning, match="1 missing images"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "a" / "images")
    with pytest.raises(InputError, match="2 DICOM annotations, but no images") as caught:
        survey_dataset(tmp_path)
    assert caught.value.code == "not-a-dataset" and "kidseg contours" in caught.value.next_step


def test_some_images_missing(tmp_path: Path) -> None:
    annotated(tmp_path, [KIDNEY])
    images = sorted((tmp_path / "images").iterdir(), key=lambda f: float(dcmread(f).InstanceNumber))
    for file in images[2:]:
        file.unlink()
    survey = survey_dataset(tmp_path)
    assert "some-images-missing" in codes(survey)


def test_what_is_wrong_with_a_series_is_said_once_though_its_labels_need_it_too(
    tmp_path: Path,
) -> None:
    annotated(tmp_path, [KIDNEY])
    images = sorted((tmp_path / "images").iterdir(), key=lambda f: float(dcmread(f).InstanceNumber))
    images[2].unlink()
    found = [f for f in check(tmp_path, jobs=1).findings if "missing" in f.cause]
    assert "images" in {Path(f.path).name for f in found}
    assert len(found) == len(set(found))


def test_without_references_the_frame_of_reference_decides_if_it_can(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    save(structure_set([KIDNEY]), tmp_path / "rs.dcm")
    survey = survey_dataset(tmp_path)
    assert only_case(survey) and codes(survey) == ["matched-by-frame"]
    series(tmp_path / "other", uid="1.2.4")
    survey = survey_dataset(tmp_path)
    assert not survey.dataset.cases and "several-series-referenced" in codes(survey)


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    path = annotated(tmp_path, [KIDNEY])
    ds = dcmread(path)
    ds.FrameOfReferenceUID = "1.9.9"
    ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.9.9"
    for item in ds.StructureSetROISequence:
        item.ReferencedFrameOfReferenceUID = "1.9.9"
    save(ds, path)
    survey = survey_dataset(tmp_path)
    assert not survey.dataset.cases and "other-frame-of-reference" in codes(survey)


def test_an_object_of_another_patient_is_said_or_not_matched(tmp_path: Path) -> None:
    path = annotated(tmp_path / "by-images", [KIDNEY])
    ds = dcmread(path)
    ds.PatientID = "P2"
    save(ds, path)
    survey = survey_dataset(tmp_path / "by-images")
    assert only_case(survey) and codes(survey) == ["other-patient"]
    folder = tmp_path / "by-frame"
    series(folder / "ct")
    alone = structure_set([KIDNEY])
    alone.PatientID = "P2"
    save(alone, folder / "rs.dcm")
    survey = survey_dataset(folder)
    assert not survey.dataset.cases and codes(survey) == ["missing-images"]
    del alone.PatientID
    save(alone, folder / "rs.dcm")
    assert only_case(survey_dataset(folder))


def test_objects_on_series_of_another_modality_are_named(tmp_path: Path) -> None:
    annotated(tmp_path / "a", [KIDNEY], uid="1.2.3")
    path = annotated(tmp_path / "b", [KIDNEY], uid="1.2.5", patient="P2", study="1.7")
    for file in (tmp_path / "b" / "images").iterdir():
        ds = dcmread(file)
        ds.Modality = "MR"
        save(ds, file)
    survey = survey_dataset(tmp_path)
    assert only_case(survey).patient != "P2" and survey.dataset.channels == ("CT",)
    said = {f.path: f for f in survey.findings}
    assert codes(survey) == ["other-modality", "other-modality"]
    assert "1 MR" in said[str(tmp_path)].cause and "MR images" in said[str(path)].cause
    assert survey_dataset(tmp_path / "b").dataset.channels == ("MR",)


def second(folder: Path, rois: Sequence[Roi], label: str) -> Path:
    """Another structure set on the series in a folder."""
    ds = structure_set(rois, headers_of(folder / "images"))
    ds.StructureSetLabel = label
    return save(ds, folder / "objects" / f"{label}.dcm")


def test_several_annotations_of_a_series_are_listed_until_one_is_chosen(tmp_path: Path) -> None:
    annotated(tmp_path, [KIDNEY])
    second(tmp_path, [Roi(name="kidney", contours=[circle(4)])], "READER2")
    survey = survey_dataset(tmp_path)
    (error,) = [f for f in survey.findings if f.severity == "error"]
    assert error.code == "several-annotations" and "--annotation" in error.next_step
    assert all(part in error.cause for part in ("SET", "READER2", "UID", "Kidney_R"))
    with pytest.raises(InputError):
        open_dataset(tmp_path)
    for text, slices in (("reader2", [4]), ("SET", [1, 2, 3])):
        (tmp_path / ROI_RULES).write_text(f'annotation = "{text}"')
        chosen = survey_dataset(tmp_path)
        assert list(np.flatnonzero(voxels(only_case(chosen), chosen).any(axis=(1, 2)))) == slices


def test_a_choice_that_fits_none_is_no_choice(tmp_path: Path) -> None:
    annotated(tmp_path, [KIDNEY])
    second(tmp_path, [KIDNEY], "READER2")
    (tmp_path / ROI_RULES).write_text('annotation = "reader 3"')
    assert "several-annotations" in codes(survey_dataset(tmp_path))


@pytest.mark.parametrize(
    ("first", "other"),
    [("kidney", "tumour"), ("left kidney", "right kidney"), ("tumour 1", "tumour 2")],
)
def test_annotations_of_different_structures_are_one_case(
    tmp_path: Path, first: str, other: str
) -> None:
    annotated(tmp_path, [Roi(name=first, contours=[square(1, (5, 5), (10, 10))])])
    second(tmp_path, [Roi(name=other, contours=[square(4, (5, 5), (10, 10))])], "B")
    second(tmp_path, [BODY], "C")
    survey = survey_dataset(tmp_path)
    assert codes(survey) == ["structures-without-label"]
    assert (voxels(only_case(survey), survey) > 0).sum(axis=(1, 2)).tolist() == [0, 25, 0, 0, 25, 0]
    case = only_case(survey)
    assert len(source_files(case)) == 6 + 2


def test_a_copy_of_an_object_is_used_once(tmp_path: Path) -> None:
    path = annotated(tmp_path, [KIDNEY])
    shutil.copy(path, tmp_path / "copy.dcm")
    survey = survey_dataset(tmp_path)
    assert codes(survey) == ["duplicate-object"] and only_case(survey)


def test_another_object_with_the_same_uid_is_an_error(tmp_path: Path) -> None:
    path = annotated(tmp_path, [KIDNEY])
    ds = dcmread(path)
    save(ds, tmp_path / "copy.dcm")
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    save(ds, tmp_path / "other syntax.dcm")
    assert codes(survey_dataset(tmp_path)) == ["duplicate-object", "duplicate-object"]
    (tmp_path / "other syntax.dcm").unlink()
    ds.ROIContourSequence[0].ContourSequence[0].ContourData[0] += 1.0
    save(ds, tmp_path / "copy.dcm")
    survey = survey_dataset(tmp_path)
    (error,) = [f for f in survey.findings if f.severity == "error"]
    assert error.code == "same-uid" and error.next_step
    with pytest.raises(InputError):
        open_dataset(tmp_path)


def test_unclear_names_are_an_error_that_a_rule_resolves(tmp_path: Path) -> None:
    rois = [
        Roi(name="RTKIDNEY1", contours=[circle(1)]),
        Roi(name="LEFT KIDNEY - 2", contours=[circle(3)]),
    ]
    annotated(tmp_path, rois)
    survey = survey_dataset(tmp_path)
    (error,) = [f for f in survey.findings if f.severity == "error"]
    assert error.code == "unclear-structure" and "'RTKIDNEY1'" in error.cause
    assert "roi_rules.toml" in error.next_step and not survey.dataset.cases
    assert len(survey.incomplete) == 1
    assert survey.structures == {"?": {"RTKIDNEY1": 1, "LEFT KIDNEY - 2": 1}}
    report = check(tmp_path, jobs=1)
    assert report.facts["structures"] == {"unclear": {"RTKIDNEY1": 1, "LEFT KIDNEY - 2": 1}}
    assert [f.code for f in report.findings] == ["unclear-structure"]
    (tmp_path / ROI_RULES).write_text("[labels]\ntumour = '(RT|LT|RIGHT|LEFT) ?KIDNEY.*'\n")
    survey = survey_dataset(tmp_path)
    case = only_case(survey)
    assert survey.dataset.schema.names == {1: "tumour"} and case.side == "bilateral"
    assert set(np.unique(voxels(case, survey))) == {0, 1}


def test_structures_that_are_all_no_label_are_an_error(tmp_path: Path) -> None:
    annotated(tmp_path, [BODY])
    survey = survey_dataset(tmp_path)
    assert codes(survey) == ["no-label", "structures-without-label"]
    assert "'BODY'" in str(survey.findings[0])


def test_damaged_objects_and_images_are_named(tmp_path: Path) -> None:
    path = annotated(tmp_path, [KIDNEY])
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(path.read_bytes()[:700])
    image = next((tmp_path / "images").iterdir())
    (tmp_path / "image.dcm").write_bytes(image.read_bytes()[:300])
    survey = survey_dataset(tmp_path)
    named = {f.path for f in survey.findings if f.severity == "error"}
    assert named == {str(broken), str(tmp_path / "image.dcm")} and only_case(survey)


def test_opening_says_which_structures_are_which_labels(tmp_path: Path) -> None:
    annotated(tmp_path, [KIDNEY, TUMOUR, BODY])
    with pytest.warns(KidsegWarning) as caught:
        open_dataset(tmp_path)
    (said,) = [str(one.message) for one in caught]
    for text in ("kidney is 'Kidney_R' (1)", "tumour is 'tumour' (1)", "no label: 'BODY' (1)"):
        assert text in said


def test_checking_names_structures_volumes_and_problems(tmp_path: Path) -> None:
    true_ml = np.pi * 36 * 2.5 * 3 / 1000
    stored = Roi(name="Kidney_R", contours=KIDNEY.contours, volume_ml=2 * true_ml)
    annotated(tmp_path, [stored, TUMOUR, BODY])
    report = check(tmp_path, jobs=1)
    assert report.ok and report.facts["structures"]["no label"] == {"BODY": 1}
    (volumes,) = report.facts["structure_volumes"].values()
    assert volumes[0]["stored_ml"] == pytest.approx(2 * true_ml, rel=1e-4)
    assert volumes[0]["difference"] == pytest.approx(-0.5, abs=0.02)
    assert "volume-differs" in {f.code for f in report.findings}
    (files,) = report.facts["case_files"].values()
    assert files["images"] == str(tmp_path / "images") and len(files["objects"]) == 1
    faulty = Roi(name="kidney", contours=[circle(2)], kind="OPEN_PLANAR")
    annotated(tmp_path / "b", [faulty], uid="1.2.8", study="1.8", patient="P8")
    report = check(tmp_path, jobs=1)
    assert {f.code for f in report.errors} == {"open-contours"}


def test_rules_for_a_data_set_without_annotations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "case" / "ct").mkdir(parents=True)
    (tmp_path / "case" / "labels.nii.gz").touch()
    assert survey_dataset(tmp_path).dataset.layout == "dicom"
    with pytest.raises(UsageError) as caught:
        survey_dataset(tmp_path, RoiRules(annotation="x"))
    assert caught.value.code == "no-annotations"


def test_other_folders_are_no_such_data_set(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    with pytest.raises(InputError) as caught:
        survey_dataset(tmp_path)
    assert caught.value.code == "not-a-dataset"
    report = check(tmp_path, jobs=1)
    assert report.kind == "scan" and report.ok
    with pytest.raises(UsageError) as usage:
        check(tmp_path, jobs=1, rules=RoiRules(annotation="x"))
    assert usage.value.code == "no-annotations"


def test_missing_identity_is_no_obstacle(tmp_path: Path) -> None:
    def edit(ds: Dataset, _: int) -> None:
        del ds.PatientID, ds.StudyInstanceUID, ds.FrameOfReferenceUID

    series(tmp_path / "images", edit=edit)
    images = headers_of(tmp_path / "images")
    ds = structure_set([KIDNEY])
    for item, image in zip(ds.ROIContourSequence[0].ContourSequence, images, strict=False):
        reference = Dataset()
        reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
        item.ContourImageSequence = [reference]
    save(ds, tmp_path / "rs.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert re.fullmatch("[0-9a-f]{8}_[0-9a-f]{8}", only_case(survey_dataset(tmp_path)).id)


@pytest.mark.filterwarnings("default::kidseg.errors.KidsegWarning")
def test_the_command_line_checks_and_exports_with_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(2):
        rois = [Roi(name="RTKIDNEY1", contours=[circle(k) for k in (1, 2)]), BODY]
        annotated(tmp_path / "in" / f"{n}", rois, uid=f"1.2.{n}", patient=f"P{n}", study=f"1.{n}")
    (tmp_path / "rules.toml").write_text('ignore = "BODY"\n[labels]\ntumour = "RTKIDNEY[0-9]"\n')
    rules = ["--roi-rules", str(tmp_path / "rules.toml")]
    assert run("check", str(tmp_path / "in"), capsys=capsys)[0] == 3
    code, out, _ = run("check", str(tmp_path / "in"), *rules, capsys=capsys)
    assert (
        code == 0 and "tumour: 'RTKIDNEY1' (2)" in out and "no label, left out: 'BODY' (2)" in out
    )
    target = tmp_path / "Dataset001_X"
    assert (
        run("export", str(tmp_path / "in"), str(target), "--folds", "2", *rules, capsys=capsys)[0]
        == 0
    )
    exported = open_dataset(target)
    assert exported.schema.names == {1: "tumour"} and len(exported.cases) == 2
    original = survey_dataset(tmp_path / "in", load_rules(tmp_path / "rules.toml"))
    for case in exported.cases:
        source = original.dataset.by_id[case.id]
        reader = CaseReader.of_dataset(exported)
        assert np.array_equal(
            reader.read(case).labels.data[0].numpy(),  # type: ignore[union-attr]
            voxels(source, original),
        )
        assert case.patient == source.patient and case.age_years == 4


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = call_cli(*arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_store_is_of_these_structures_as_these_labels(tmp_path: Path) -> None:
    cohort(tmp_path, ["A", "B"])
    usual = survey_dataset(tmp_path).dataset
    (tmp_path / ROI_RULES).write_text("[labels]\nkidney = 'kidney.*|BODY'\ntumour = 'tumour'\n")
    other = survey_dataset(tmp_path).dataset
    assert usual.schema.names == other.schema.names
    described = [dataset_facts(data) for data in (usual, other)]
    assert described[0] != described[1] and str(tmp_path) not in str(described)


def test_segmenting_such_a_data_set_names_results_by_case(tmp_path: Path) -> None:
    cohort(tmp_path, ["A", "B"])
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, file in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        file.rename(flat / f"{k}.dcm")
    sources = find_scans([flat], 1, ReadOptions())
    cases = survey_dataset(flat).dataset.by_id
    assert {one.name for one in sources} == set(cases)
    for one in sources:
        assert one.case is not None and set(one.files) == set(cases[one.name].annotation.images)  # type: ignore[union-attr]
        assert one.case.reading(ReadOptions()).files == one.files


def test_one_series_with_an_annotation_is_segmented_as_a_scan(tmp_path: Path) -> None:
    annotated(tmp_path / "child", [KIDNEY])
    (source,) = find_scans([tmp_path / "child"], 1, ReadOptions())
    assert source.name == "child" and source.case is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kidseg.errors.KidsegWarning")
def test_such_a_data_set_is_trained_on_segmented_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Structure Sets whose names need rules, and Segmentations, by the command line."""
    data, runs, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    for n in range(4):
        folder = data / f"{n}"
        kidney = Roi(name="Left", contours=[circle(k, 8.0 + n / 2) for k in (1, 2, 3, 4)])
        tumour = Roi(name="LTKIDNEY1", contours=[square(k, (10, 12), (16, 20)) for k in (2, 3)])
        path = annotated(
            folder, [kidney, tumour, BODY], uid=f"1.2.{n}", patient=f"P{n}", study=f"1.{n}"
        )
        if n % 2:
            as_segmentation(path, folder / "images")
    (tmp_path / "rules.toml").write_text(
        "ignore = 'BODY'\n[labels]\nkidney = 'Left|kidney'\ntumour = '(RT|LT)KIDNEY.*|tumour'\n"
    )
    rules = ["--roi-rules", str(tmp_path / "rules.toml")]
    few = [f"segment.{name}=1" for name in ("epochs", "steps")]
    small = ["view.size=32", "unet.size=32", "unet.features=4", "segment.min_epochs=0", *few]
    settings = [word for each in small for word in ("--set", each)]
    code, _, err = run(
        *("train", str(data), "-o", str(runs), "--method", "plain", "--device", "cpu"),
        *(*rules, *settings, "--json"),
        capsys=capsys,
    )
    assert code == 0, err
    kept, given = load_rules(runs / ROI_RULES), load_rules(tmp_path / "rules.toml")
    assert kept is not None and given is not None and kept.agrees(given)
    header = json.loads(run("info", str(runs / "model.safetensors"), "--json", capsys=capsys)[1])
    assert header["labels"]["names"] == {"1": "kidney", "2": "tumour"}
    words = ["segment", str(data), "-m", str(runs), "-o", str(out), "--device", "cpu"]
    code, _, err = run(*words, "--formats", "nii,dicomseg", capsys=capsys)
    assert code == 0, err
    cases = {case.id for case in survey_dataset(data, given).dataset.cases}
    assert len(cases) == 4 and {path.name for path in out.glob("*_seg.nii.gz")} == {
        f"{case}_seg.nii.gz" for case in cases
    }
    words = ["evaluate", str(out), str(data), "-o", str(tmp_path / "scores"), "--json"]
    code, said, err = run(*words, "--roi-rules", str(runs / ROI_RULES), capsys=capsys)
    assert code == 0, err
    summary = json.loads(said)
    assert summary["n_cases"] == 4 and summary["structures"]["tumour"]["dice"]["n"] == 4


def as_segmentation(path: Path, images: Path) -> None:
    """Replace a structure set of a kidney and a tumour by a Segmentation of the same voxels."""
    parts = tuple(Part(path=path, number=n, label=n) for n in (1, 2))
    files = tuple(sorted(images.iterdir()))
    annotation = Annotation(folder=images, images=files, series="", parts=parts)
    labels = read(path, ReadOptions(values="labels", files=files, annotation=annotation)).volume
    source = read_source(images, ReadOptions(values="any"))
    path.unlink()
    with path.open("wb") as file:
        write_dicom_segmentation(
            reorient(labels, source.native), KIDNEY_TUMOUR, source, ORIGIN, file
        )
