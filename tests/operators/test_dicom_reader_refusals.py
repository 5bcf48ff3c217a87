"""What the reader leaves out, splits and refuses, and what it tells of it."""

from __future__ import annotations

import contextlib
import doctest
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operators.phantoms import Phantom, make_phantom
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from clara_flow.operators.dicom_reader import report as report_module
from clara_flow.operators.dicom_reader.report import Report
from clara_flow.operators.dicom_reader.study import StudyUnusable, read_study
from clara_flow.operators.imaging import read_volume

PYDICOM_FILES = sorted(path for path in Path(pydicom.data.__file__).parent.rglob("*") if path.is_file())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def fresh_uids(phantom: Phantom) -> Phantom:
    """Give the instances UIDs of their own, so that they are no repetitions of another phantom's of that series."""
    for dataset in phantom.datasets:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return phantom


def move(dataset: Dataset, by: np.ndarray) -> None:
    dataset.ImagePositionPatient = [round(p + d, 6) for p, d in zip(dataset.ImagePositionPatient, by, strict=True)]


def reason_of(report: Report) -> str:
    assert report.series == ()
    assert len(report.skipped_series) == 1
    assert str(report.skipped_series[0]) in report.warnings[-1]
    return report.skipped_series[0].reason


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_missing_slices_are_counted_and_placed(study: Path, output: Path, orientation: str) -> None:
    phantom = make_phantom(shape=(10, 4, 4), spacing_mm=(2, 1, 1), origin=(0, 0, 0), orientation=orientation)
    for index in (6, 3, 2):
        del phantom.datasets[index]
    phantom.write(study)
    assert reason_of(read_study(study, output)) == (
        "3 slices are missing: 2 between 2.0 and 8.0 mm along the normal, 1 between 10.0 and 14.0 mm along the normal"
    )
    assert [path.name for path in output.iterdir()] == ["reader-report.json"]


@settings(max_examples=25, deadline=None)
@given(gone=st.sets(st.integers(1, 10), min_size=1, max_size=3), is_shuffled=st.booleans(), seed=st.integers(0, 2**32))
def test_no_missing_slice_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, gone: set[int], is_shuffled: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("gaps")
    phantom = make_phantom(shape=(12, 2, 2), orientation="oblique", is_shuffled=is_shuffled, seed=seed)
    phantom.datasets[:] = [dataset for index, dataset in enumerate(phantom.datasets) if index not in gone]
    phantom.write(folder / "in")
    assert f"{len(gone)} slice{'s are' if len(gone) > 1 else ' is'} missing" in reason_of(
        read_study(folder / "in", folder)
    )


@pytest.mark.parametrize(("shift_mm", "is_read"), [(0.015, True), (0.03, False)])
def test_spacing_may_vary_by_one_percent(study: Path, output: Path, shift_mm: float, is_read: bool) -> None:
    phantom = make_phantom(spacing_mm=(2, 1, 1))
    move(phantom.datasets[2], np.array([0, 0, shift_mm]))
    phantom.write(study)
    report = read_study(study, output)
    if is_read:
        assert len(report.series) == 1
    else:
        assert reason_of(report) == "the distance between its slices varies from 1.97 to 2.03 mm"


def test_spacing_that_drifts_is_uneven_though_no_step_is(study: Path, output: Path) -> None:
    phantom = make_phantom(shape=(110, 2, 2), spacing_mm=(0.5, 1, 1))
    for index, dataset in enumerate(phantom.datasets):
        move(dataset, np.array([0, 0, 0.0105 * max(0, index - 55)]))
    phantom.write(study)
    assert "distance between its slices varies from 0.50 to 0.51 mm" in reason_of(read_study(study, output))


@pytest.mark.parametrize("orientation", ["axial", "coronal", "oblique"])
def test_gantry_tilt_is_told_in_degrees(study: Path, output: Path, orientation: str) -> None:
    phantom = make_phantom(shape=(9, 4, 4), spacing_mm=(2, 1, 1), orientation=orientation)
    for index, dataset in enumerate(phantom.datasets):
        move(dataset, phantom.volume.direction[:, 1] * 2 * index * np.tan(np.radians(15)))
    phantom.write(study)
    assert reason_of(read_study(study, output)).startswith("its slices are tilted by 15.0 degrees")


def test_slices_that_stand_aside_are_told(study: Path, output: Path) -> None:
    phantom = make_phantom()
    move(phantom.datasets[2], np.array([4, 0, 0]))
    phantom.write(study)
    assert reason_of(read_study(study, output)).endswith("straight above one another; some are 4.0 mm aside")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_rounded_positions_are_no_fault(study: Path, output: Path, modality: str) -> None:
    phantom = make_phantom(shape=(40, 4, 4), orientation="oblique", spacing_mm=(0.7, 0.6, 0.6), modality=modality)
    for dataset in phantom.datasets:
        dataset.ImagePositionPatient = [round(value, 2) for value in dataset.ImagePositionPatient]
    phantom.write(study)
    report = read_study(study, output)
    assert read_volume(output / report.series[0].file).same_grid(phantom.volume, tolerance_mm=0.02)


def test_a_repeated_instance_is_dropped_and_told(study: Path, output: Path) -> None:
    phantom = make_phantom()
    paths = phantom.write(study)
    shutil.copy(paths[2], study / "a copy.dcm")
    report = read_study(study, output)
    assert np.array_equal(read_volume(output / report.series[0].file).array, phantom.volume.array)
    assert [(file.file, file.reason) for file in report.skipped_files] == [
        (paths[2].name if paths[2].name > "a copy.dcm" else "a copy.dcm", "repeats an instance of another file")
    ]
    assert report.warnings == ("1 file left out: repeats an instance of another file",)


def test_two_slices_at_one_place_are_refused(study: Path, output: Path) -> None:
    phantom = make_phantom()
    phantom.write(study)
    other = fresh_uids(make_phantom(series_uid=phantom.series_uid, seed=1))
    other.datasets[2].FrameOfReferenceUID = phantom.frame_of_reference_uid
    other.datasets[2].save_as(study / "other.dcm")
    assert reason_of(read_study(study, output)).startswith("1 slice is at a place where there is another")


TRAITS: dict[str, Callable[[Dataset, int], None]] = {
    "temporal position": lambda d, n: setattr(d, "TemporalPositionIdentifier", n),
    "echo": lambda d, n: setattr(d, "EchoTime", str(10 * n)),
    "acquisition": lambda d, n: setattr(d, "AcquisitionNumber", n),
    "diffusion weighting": lambda d, n: setattr(d, "DiffusionBValue", 500.0 * n),
    "kind of image": lambda d, n: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "M" if n == 1 else f"P{n}"]),
}


@pytest.mark.parametrize("trait", TRAITS)
def test_volumes_at_one_place_are_told_apart_by_what_differs(study: Path, output: Path, trait: str) -> None:
    common = {"modality": "MR", "series_uid": generate_uid(), "frame_of_reference_uid": generate_uid()}
    phantoms = [fresh_uids(make_phantom(seed=seed, **common)) for seed in range(3)]
    for number, phantom in enumerate(phantoms, start=1):
        for index, dataset in enumerate(phantom.datasets):
            TRAITS[trait](dataset, number)
            dataset.InstanceNumber = index * 3 + number
            dataset.AcquisitionTime = f"1200{index:02d}"  # differs from slice to slice: tells nothing
        phantom.write(study / str(number))
    report = read_study(study, output)
    assert [made.file for made in report.series] == [f"{common['series_uid']}-{n}.mhd" for n in (1, 2, 3)]
    assert [list(made.label) for made in report.series] == [[trait]] * 3
    for made, phantom in zip(report.series, phantoms, strict=True):
        assert np.array_equal(read_volume(output / made.file).array, phantom.volume.array)


def test_two_traits_together_tell_volumes_apart(study: Path, output: Path) -> None:
    common = {"modality": "MR", "series_uid": generate_uid(), "frame_of_reference_uid": generate_uid()}
    for number in range(4):
        phantom = fresh_uids(make_phantom(seed=number, **common))
        for dataset in phantom.datasets:
            dataset.EchoTime = str(10 + number // 2)
            dataset.TemporalPositionIdentifier = number % 2 + 1
        phantom.write(study / str(number))
    labels = [made.label for made in read_study(study, output).series]
    assert sorted(tuple(label) for label in labels) == [("temporal position", "echo")] * 4


def test_time_points_of_a_multi_frame_image_are_told_apart(study: Path, output: Path) -> None:
    phantom = make_phantom(shape=(6, 4, 4), enhanced=True)
    groups = phantom.datasets[0].PerFrameFunctionalGroupsSequence
    for index, group in enumerate(groups):
        group.FrameContentSequence[0].TemporalPositionIndex = index // 3 + 1
        group.PlanePositionSequence = groups[index % 3].PlanePositionSequence
    phantom.write(study)
    report = read_study(study, output)
    assert [made.label for made in report.series] == [{"temporal position": "1"}, {"temporal position": "2"}]
    assert [[source.frame for source in made.slices] for made in report.series] == [[1, 2, 3], [4, 5, 6]]
    for made, stored in zip(report.series, np.split(phantom.stored, 2), strict=True):
        assert np.array_equal(read_volume(output / made.file).array, stored)


def test_stacks_of_other_orientation_size_or_frame_of_reference_are_volumes_of_their_own(
    study: Path, output: Path
) -> None:
    common = {"series_uid": generate_uid(), "frame_of_reference_uid": generate_uid()}
    phantoms = [
        make_phantom(**common),
        make_phantom(**common, orientation="coronal"),
        make_phantom(**common, shape=(5, 4, 4)),
        make_phantom(**(common | {"frame_of_reference_uid": generate_uid()})),
    ]
    for number, phantom in enumerate(phantoms):
        fresh_uids(phantom).write(study / str(number))
    report = read_study(study, output)
    assert [made.file for made in report.series] == [f"{common['series_uid']}-{n}.mhd" for n in (1, 2, 3, 4)]
    for made, phantom in zip(report.series, phantoms, strict=True):
        assert np.array_equal(read_volume(output / made.file).array, phantom.volume.array)


def test_a_localiser_of_another_orientation_is_left_out(study: Path, output: Path) -> None:
    phantom = make_phantom()
    phantom.write(study / "volume")
    localiser = make_phantom(orientation="coronal", shape=(1, 9, 9), series_uid=phantom.series_uid)
    fresh_uids(localiser).write(study / "localiser")
    report = read_study(study, output)
    assert [made.file for made in report.series] == [f"{phantom.series_uid}.mhd"]
    assert "a single slice of another orientation" in report.skipped_series[0].reason


def test_a_ct_scout_is_never_a_volume(study: Path, output: Path) -> None:
    phantom = make_phantom(shape=(1, 9, 9))
    phantom.datasets[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    phantom.write(study)
    assert reason_of(read_study(study, output)) == "a localiser is a projection, not a slice"


def test_a_single_slice_is_as_deep_as_it_says(study: Path, output: Path) -> None:
    phantom = make_phantom(shape=(1, 4, 4), spacing_mm=(3.5, 1, 1))
    phantom.write(study)
    assert read_study(study, output).series[0].spacing_mm[0] == 3.5
    del phantom.datasets[0].SliceThickness
    phantom.write(study)
    assert reason_of(read_study(study, output)) == "it is a single slice that does not tell its thickness"


@pytest.mark.parametrize(
    ("kept_bytes", "reason"),
    [
        (-10, "1 of its slices cannot be read: its pixel data are cut off: 74 of 84 bytes"),
        (-84, "1 of its slices cannot be read: its pixel data are cut off: 0 of 84 bytes"),
        (-96, "1 of its slices cannot be read: it ends before its pixel data"),
        *(
            (kept, "1 slice is missing: 1 between -97.5 and -92.5 mm along the normal")
            for kept in (300, 133, 131, 1, 0)
        ),
    ],
)
def test_a_truncated_file_is_listed_and_its_series_refused(
    study: Path, output: Path, kept_bytes: int, reason: str
) -> None:
    paths = make_phantom().write(study)
    paths[2].write_bytes(paths[2].read_bytes()[:kept_bytes])
    report = read_study(study, output)
    assert [file.file for file in report.skipped_files] == [paths[2].name]
    assert reason_of(report) == reason


@pytest.mark.parametrize("cut", [0, 4])
def test_a_series_whose_first_or_last_file_is_cut_off_is_refused(study: Path, output: Path, cut: int) -> None:
    paths = make_phantom().write(study)
    paths[cut].write_bytes(paths[cut].read_bytes()[:-2])
    report = read_study(study, output)
    assert reason_of(report) == "1 of its slices cannot be read: its pixel data are cut off: 82 of 84 bytes"
    assert report.warnings[0] == "1 file left out: its pixel data are cut off: 82 of 84 bytes"
    assert not list(output.glob("*.mhd"))


def test_broken_compressed_pixels_are_found(study: Path, output: Path) -> None:
    phantom = make_phantom(shape=(4, 16, 16))
    for dataset in phantom.datasets:
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    paths = phantom.write(study)
    paths[3].write_bytes(paths[3].read_bytes()[:-300])
    report = read_study(study, output)
    assert [(file.file, "cannot be decoded" in file.reason) for file in report.skipped_files] == [(paths[3].name, True)]
    assert reason_of(report).startswith("1 of its slices cannot be read: its pixel data cannot be")
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    shutil.rmtree(output)
    output.mkdir()
    assert reason_of(read_study(study, output)).startswith("2 of its slices cannot be read: its pixel data cannot be")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about what is wrong on purpose
def test_other_objects_are_left_out_with_their_reasons(study: Path, output: Path) -> None:
    phantom = make_phantom()
    phantom.write(study)

    def other(name: str, **attributes: object) -> None:
        dataset = make_phantom(seed=7, study_uid=phantom.study_uid).datasets[0]
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = generate_uid(), generate_uid()
        for keyword, value in attributes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(study / name)

    other("o1", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    other("o2", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    other("o3", PhotometricInterpretation="PALETTE COLOR")
    other("o4", ImagePositionPatient=None)
    other("o5", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    other("o6", PixelSpacing=[0, 1])
    other("o8", NumberOfFrames=1, Rows=0)
    other("o9", NumberOfFrames=2)
    other("p1", ModalityLUTSequence=[Dataset()])
    other("p2", SeriesInstanceUID="../../outside")
    other("p5", PhotometricInterpretation="RGB\nforged line")
    other("p3", ImagePositionPatient=["nan", 0, 0])
    (study / "p4").write_text("a letter")
    (study / "DICOMDIR").write_bytes(b"any")
    report = read_study(study, output)
    assert len(report.series) == 1
    reasons = {file.file: file.reason for file in report.skipped_files}
    assert sorted(reasons) == ["o1", "o2", "o3", "o4", "o5", "o6", "o8", "o9", "p1", "p2", "p3", "p4", "p5"]
    for name, part in {
        "o1": "segmentation", "o2": "radiotherapy", "o3": "colour", "o4": "where it lies", "o5": "right angle",
        "o6": "not positive", "o8": "not an image", "o9": "where each lies", "p1": "Modality LUT",
        "p2": "not a DICOM file", "p3": "where it lies", "p4": "not a DICOM file", "p5": "a colour image (?)",
    }.items():  # fmt: skip
        assert part in reasons[name]


def test_a_transfer_syntax_without_a_decoder_is_named(study: Path, output: Path) -> None:
    phantom = make_phantom()
    for dataset in phantom.datasets:
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    phantom.write(study)
    assert reason_of(read_study(study, output)).startswith("its transfer syntax cannot be decoded here: MPEG2")


def test_one_bad_series_does_not_stop_the_others(study: Path, output: Path) -> None:
    good, bad = make_phantom(seed=1), make_phantom(seed=2, study_uid=make_phantom(seed=1).study_uid)
    del bad.datasets[2]
    good.write(study / "b")
    bad.write(study / "a")
    lines: list[str] = []
    report = read_study(study, output, tell=lines.append)
    assert lines == ["series 1 of 2: 4 slices", "series 2 of 2: 5 slices"]
    assert [made.series_uid for made in report.series] == [good.series_uid]
    assert [left.series_uid for left in report.skipped_series] == [bad.series_uid]
    assert report.warnings[0].startswith("series 1 of 2 gives no volume of CT, 4 slices: 1 slice is missing")
    written = json.loads((output / "reader-report.json").read_text())
    assert written["version"] == 1
    assert written["series"][0]["slices"][0] == {
        "file": "b/IM0001.dcm",
        "frame": 1,
        "sop_instance_uid": good.datasets[0].SOPInstanceUID,
    }
    assert written["skipped_series"][0]["slices"] == 4


def test_two_patients_are_refused_without_names(study: Path, output: Path) -> None:
    make_phantom(seed=1, patient_id="ANNA").write(study / "a")
    make_phantom(seed=2, patient_id="BERTA").write(study / "b")
    with pytest.raises(StudyUnusable, match="2 patients") as problem:
        read_study(study, output)
    assert "ANNA" not in str(problem.value)
    assert list(output.iterdir()) == []


def test_an_object_without_patient_id_is_its_study_s_patient_s(study: Path, output: Path) -> None:
    phantom = make_phantom()
    phantom.datasets[1].PatientID = ""
    phantom.datasets[1].PatientName = "otherwise^spelled"
    phantom.write(study)
    assert len(read_study(study, output).series) == 1


def test_without_ids_names_tell_patients_apart(study: Path, output: Path) -> None:
    for seed in (1, 2):
        phantom = make_phantom(seed=seed)
        for dataset in phantom.datasets:
            dataset.PatientID, dataset.PatientName = "", f"Phantom^{seed}"
        phantom.write(study / str(seed))
    with pytest.raises(StudyUnusable, match="2 patients"):
        read_study(study, output)


def test_a_folder_without_dicom_says_so(study: Path, output: Path) -> None:
    with pytest.raises(StudyUnusable, match="holds no files"):
        read_study(study, output)
    (study / "a.txt").write_text("text")
    (study / "empty").touch()
    with pytest.raises(StudyUnusable, match="no DICOM image \\(2 files left out: not a DICOM file\\)"):
        read_study(study, output)


def test_an_unknown_format_is_refused(study: Path, output: Path) -> None:
    with pytest.raises(ValueError, match="choose mhd, nii, nii\\.gz"):
        read_study(study, output, image_format="png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about what is wrong on purpose
def test_pydicom_s_own_files_never_stop_the_reader(study: Path, output: Path) -> None:
    """Each patient's files in one folder; all in one folder are many patients."""
    patients: dict[str, list[Path]] = defaultdict(list)
    for path in PYDICOM_FILES:
        try:
            owner = str(dcmread(path, specific_tags=["PatientID"], stop_before_pixels=True).get("PatientID"))
        except Exception:  # noqa: BLE001 - broken on purpose
            owner = ""
        patients[owner].append(path)
        shutil.copy(path, study / f"{len(patients)}-{path.name}")
    with pytest.raises(StudyUnusable, match="patients"):
        read_study(study, output)
    volumes = 0
    for number, paths in enumerate(patients.values()):
        folders = study.parent / f"{number}-in", study.parent / f"{number}-out"
        for folder in folders:
            folder.mkdir()
        for path in paths:
            shutil.copy(path, folders[0] / f"{paths.index(path)}-{path.name}")
        with contextlib.suppress(StudyUnusable):
            volumes += len(read_study(*folders).series)
    assert volumes >= 5


def test_examples_in_docstrings_are_true() -> None:
    outcome = doctest.testmod(report_module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def run_operator(study: Path, output: Path, **variables: str) -> tuple[int, str]:
    process = subprocess.run(
        [sys.executable, "-m", "clara_flow.operators.dicom_reader"],
        env=os.environ | {"NVIDIA_CLARA_INPUT": str(study), "NVIDIA_CLARA_OUTPUT": str(output)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    return process.returncode, process.stdout


def test_the_operator_writes_volumes_and_logs_nothing_of_the_patient(study: Path, output: Path) -> None:
    phantom = make_phantom(patient_id="SECRET")
    phantom.write(study)
    code, log = run_operator(study, output, NVIDIA_CLARA_IMAGE_FORMAT="nii.gz")
    assert code == 0
    assert "series 1 of 1: 5 slices" in log
    assert not any(word in log for word in ("SECRET", phantom.series_uid, "Phantom"))
    assert sorted(path.name for path in output.iterdir()) == [f"{phantom.series_uid}.nii.gz", "reader-report.json"]


def test_the_operator_fails_with_the_reason_in_its_last_lines(study: Path, output: Path) -> None:
    phantom = make_phantom(patient_id="SECRET")
    del phantom.datasets[2]
    phantom.write(study)
    code, log = run_operator(study, output)
    assert code == 1
    assert "no series of this study gave a volume: CT, 4 slices: 1 slice is missing" in log.splitlines()[-2]
    assert "SECRET" not in log
    code, log = run_operator(study, output, NVIDIA_CLARA_IMAGE_FORMAT="png")
    assert (code, "choose mhd, nii, nii.gz" in log) == (1, True)
    shutil.rmtree(study)
    study.mkdir()
    code, log = run_operator(study, output)
    assert (code, "holds no files" in log) == (1, True)
