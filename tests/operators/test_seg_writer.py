"""The SEG writer: what it writes covers the mask's voxels in the patient, passes dciodvfy, and refers to its source."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operators.phantoms import ORIENTATIONS, direction_of, make_phantom
from pydicom.uid import CTImageStorage, generate_uid
from scipy.spatial.transform import Rotation

from clara_flow.operators.dicom_reader.study import read_study as read_volumes
from clara_flow.operators.dicom_seg_writer.matching import NoSource, read_hints
from clara_flow.operators.dicom_seg_writer.source import read_study
from clara_flow.operators.dicom_seg_writer.writer import MaskUnusable, SegOptions, write_seg
from clara_flow.operators.imaging import Volume, find_volumes, read_volume, write_volume
from clara_flow.operators.imaging.geometry import affine_lps

DCIODVFY = shutil.which("dciodvfy")
NOON = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
OPTIONS = SegOptions(names=("Brain", "Tumor"), algorithm_name="net", algorithm_version="1", job="job-1", created=NOON)
CODES = [
    "".join(letters) for axes in itertools.permutations(("LR", "AP", "SI")) for letters in itertools.product(*axes)
]


def grid(orientation="axial", *, shape=(7, 9, 8), spacing=(3.0, 0.9, 1.1), turn=(0, 0, 0), origin=(-31.5, 12.25, 80)):
    """An empty volume, slices as acquired, first slice first along the normal."""
    direction = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ direction_of(orientation)
    return Volume(np.zeros(shape, np.uint8), affine_lps(origin, direction, spacing))


def blobs(volume, labels=(1,), seed=0):
    """Random voxels of each label, on some slices."""
    rng = np.random.default_rng(seed)
    array = rng.choice([0, 0, *labels], size=volume.shape).astype(np.uint8)
    array[rng.random(volume.shape[0]) < 0.3] = 0
    array[volume.shape[0] // 2, 2, 3 : 3 + len(labels)] = labels
    return volume.with_array(array)


def phantom_on(volume, uid, **kwargs):
    """A series on the grid of a volume, with attributes that an operator must copy."""
    kwargs.setdefault("modality", "MR")
    phantom = make_phantom(
        orientation=volume.direction,
        shape=volume.shape,
        spacing_mm=tuple(volume.spacing_mm),
        origin=volume.origin,
        series_uid=uid,
        study_uid=generate_uid(entropy_srcs=["study"]),
        series_number=3,
        description="T1 mprage",
        **kwargs,
    )
    for dataset in phantom.datasets:
        dataset.PositionReferenceIndicator = "NA"
        dataset.AccessionNumber, dataset.ReferringPhysicianName = "ACC-1", "House^G"
        dataset.StudyDescription = "Head"
    return phantom


def write_series(folder, volume, uid, *, change=None, **kwargs):
    """A series on the grid of a volume, each instance changed by `change(dataset)`. Returns its UID."""
    phantom = phantom_on(volume, uid, **kwargs)
    for dataset in phantom.datasets:
        if change:
            change(dataset)
    phantom.write(folder)
    return uid


def series_uid(number=1):
    return generate_uid(entropy_srcs=["series", str(number)])


def written(tmp_path, mask, name, *, options=OPTIONS, study="study", **kwargs):
    """Writes the mask as `name` and its segmentation; returns the facts and the object as read back."""
    masks = tmp_path / "masks"
    masks.mkdir(exist_ok=True)
    write_volume(masks / name, mask)
    found = read_study(tmp_path / study)
    place = tmp_path / "seg"
    place.mkdir(exist_ok=True)
    facts = write_seg(masks / name, found, place, hints=read_hints([masks]), options=options, **kwargs)
    return facts, hd.seg.segread(facts.path)


def voxels_of(seg, mask):
    """The object's segments put back on the mask's grid by patient coordinates: label numbers as segments are counted.

    Fails where a pixel is nowhere near the centre of a voxel.
    """
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_mm, column_mm = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    back = np.zeros(mask.shape, np.uint16)
    for group, frame in zip(
        seg.PerFrameFunctionalGroupsSequence, seg.pixel_array.reshape(-1, seg.Rows, seg.Columns), strict=True
    ):
        rows, columns = np.nonzero(frame)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        places = origin + np.outer(columns * column_mm, orientation[:3]) + np.outer(rows * row_mm, orientation[3:])
        index = mask.index_at(places)
        nearest = np.rint(index).astype(int)
        assert np.abs(index - nearest).max() < 0.02
        identification = group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        assert not back[tuple(nearest.T)].any()
        back[tuple(nearest.T)] = identification[0].ReferencedSegmentNumber
    return back


def assert_valid(path):
    """No error by dciodvfy, where it is installed."""
    if DCIODVFY is None:
        return
    done = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def assert_refers_to_source(seg, study):
    """Every frame refers to the source instance at its own place."""
    places = {}
    for path in study.rglob("*.dcm"):
        header = pydicom.dcmread(path)
        if "PerFrameFunctionalGroupsSequence" in header:
            for number, group in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
                places[header.SOPInstanceUID, number] = group.PlanePositionSequence[0].ImagePositionPatient
        else:
            places[header.SOPInstanceUID, None] = header.ImagePositionPatient
    listed = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    used = set()
    for group in seg.PerFrameFunctionalGroupsSequence:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")
        assert np.allclose(places[key], group.PlanePositionSequence[0].ImagePositionPatient, atol=1e-3)
        used.add(item.ReferencedSOPInstanceUID)
    assert used == listed


# ---------------------------------------------------------------- geometry


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    is_reversed=st.booleans(),
    turn=st.tuples(*[st.one_of(st.just(0.0), st.floats(-40, 40))] * 3),
    spacing=st.tuples(st.floats(0.6, 6), st.floats(0.3, 2), st.floats(0.3, 2)),
    stored_as=st.sampled_from(CODES),
    seed=st.integers(0, 2**16),
    suffix=st.sampled_from([".mhd", ".nii.gz", ".nii"]),
)
def test_the_object_covers_exactly_the_masks_voxels(
    tmp_path, orientation, is_reversed, turn, spacing, stored_as, seed, suffix
):
    shutil.rmtree(tmp_path / "study", ignore_errors=True)
    volume = grid(orientation, spacing=spacing, turn=turn)
    uid = write_series(tmp_path / "study", volume, series_uid(), is_reversed=is_reversed, is_shuffled=True, seed=seed)
    mask = blobs(volume, labels=(1, 2), seed=seed)
    facts, seg = written(tmp_path, mask.reoriented(stored_as), f"{uid}{suffix}")
    assert not facts.resampled
    assert np.array_equal(voxels_of(seg, mask), mask.array)
    assert seg.FrameOfReferenceUID == phantom_on(volume, uid, seed=seed).frame_of_reference_uid
    assert_refers_to_source(seg, tmp_path / "study")
    assert_valid(facts.path)


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_from_the_readers_volume_back_to_the_slices(tmp_path, orientation, is_reversed, enhanced):
    phantom = phantom_on(grid(orientation), series_uid(), is_reversed=is_reversed, enhanced=enhanced)
    phantom.write(tmp_path / "study")
    (tmp_path / "volumes").mkdir()
    read_volumes(tmp_path / "study", tmp_path / "volumes")
    (path,) = find_volumes(tmp_path / "volumes")
    volume = read_volume(path)
    mask = volume.with_array((volume.array > 60).astype(np.uint8))
    facts, seg = written(tmp_path, mask, path.name)
    assert np.array_equal(voxels_of(seg, phantom.volume), phantom.volume.array > 60)
    assert (facts.found_by, facts.resampled) == ("file name", False)
    assert_refers_to_source(seg, tmp_path / "study")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_stored_in_reverse_order_is_covered_just_so(tmp_path, orientation):
    volume = grid(orientation, turn=(5, -10, 15))
    uid = write_series(tmp_path / "study", volume, series_uid(), is_reversed=True)
    mask = blobs(volume)
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)
    assert not facts.resampled


def test_highdicom_reads_the_same_volume(tmp_path):
    volume = grid("sagittal", turn=(3, 4, 5))
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = blobs(volume, labels=(1, 2))
    _, seg = written(tmp_path, mask, f"{uid}.mhd")
    read = seg.get_volume(combine_segments=True)
    index = np.argwhere(read.array)
    places = index @ read.affine[:3, :3].T + read.affine[:3, 3]
    nearest = np.rint(mask.index_at(places)).astype(int)
    back = np.zeros(mask.shape, np.uint8)
    back[tuple(nearest.T)] = read.array[tuple(index.T)]
    assert np.array_equal(back, mask.array)


@pytest.mark.parametrize("copies", [1, 2], ids=["one stack", "two echoes"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_enhanced_multi_frame_source(tmp_path, orientation, copies):
    volume = grid(orientation, turn=(8, 0, -4))
    phantom = phantom_on(volume, series_uid(), enhanced=True, is_shuffled=True)
    header = phantom.datasets[0]
    header.NumberOfFrames *= copies
    header.PixelData *= copies
    header.PerFrameFunctionalGroupsSequence = list(header.PerFrameFunctionalGroupsSequence) * copies
    phantom.write(tmp_path / "study")
    uid = phantom.series_uid
    mask = blobs(volume)
    facts, seg = written(tmp_path, mask.reoriented("LAS"), f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)
    assert_refers_to_source(seg, tmp_path / "study")
    assert_valid(facts.path)
    assert len(seg.SourceImageSequence) == 1


@pytest.mark.parametrize("apart", [0.0, 0.4], ids=["even", "uneven"])
def test_two_echoes_the_name_or_the_readers_report_tells_which(tmp_path, apart):
    volume, uid = grid(), series_uid()
    uids = []
    for echo in (1, 2):
        phantom = phantom_on(volume, uid, is_reversed=echo == 2)
        for index, dataset in enumerate(phantom.datasets):
            dataset.EchoNumbers, dataset.EchoTime = str(echo), str(10 * echo)
            dataset.InstanceNumber = 2 * dataset.InstanceNumber + echo
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(
                entropy_srcs=[f"{uid} {echo} {index}"]
            )
            dataset.ImagePositionPatient[2] += apart * (index % 2)
        phantom.write(tmp_path / "study" / str(echo))
        uids.append({dataset.SOPInstanceUID for dataset in phantom.datasets})
    mask = blobs(volume)

    def referred(name):
        facts, seg = written(tmp_path, mask, name)
        assert not facts.resampled
        return {item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence}

    assert referred(f"{uid}-1.mhd") <= uids[0]
    assert referred(f"{uid}-2.mhd") <= uids[1]
    slices = [{"sop_instance_uid": instance, "frame": 1} for instance in sorted(uids[1])]
    report = {"series": [{"file": "brain.mhd", "series_uid": uid, "slices": slices}]}
    (tmp_path / "masks" / "reader-report.json").write_text(json.dumps(report))
    assert referred("brain.nii.gz") <= uids[1]


def test_slices_that_stray_from_the_readers_even_grid_keep_their_planes(tmp_path):
    volume = grid(shape=(9, 9, 8))
    phantom = phantom_on(volume, series_uid())
    strays = [0, 0.4, 0.8, 1.2, 1.4, 1.2, 0.8, 0.4, 0]  # millimetres; half a slice distance is 1.5
    for dataset, stray in zip(phantom.datasets, strays, strict=True):
        dataset.ImagePositionPatient[2] += stray
    phantom.write(tmp_path / "study")
    mask = blobs(volume)
    facts, seg = written(tmp_path, mask.reoriented("IAR"), f"{phantom.series_uid}.mhd")
    assert not facts.resampled
    assert_refers_to_source(seg, tmp_path / "study")
    planes = {
        float(group.PlanePositionSequence[0].ImagePositionPatient[2]): frame
        for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True)
    }
    for index, stray in enumerate(strays):
        shown = planes.get(round(80 + 3 * index + stray, 3), np.zeros(mask.shape[1:]))
        assert np.array_equal(shown, mask.array[index])


def test_frames_at_one_place_that_nothing_tells_apart_are_referred_to_once(tmp_path):
    volume, uid = grid(), series_uid()
    for copy in (1, 2):
        phantom = phantom_on(volume, uid)
        for index, dataset in enumerate(phantom.datasets):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(
                entropy_srcs=[f"{uid} {copy} {index}"]
            )
        phantom.write(tmp_path / "study" / str(copy))
    mask = blobs(volume)
    _, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)


def test_gantry_tilt_is_covered_by_resampling(tmp_path):
    upright = grid(shape=(12, 30, 30), spacing=(2, 1, 1))
    phantom = phantom_on(upright, series_uid())
    for index, dataset in enumerate(phantom.datasets):
        dataset.ImagePositionPatient[1] = f"{12.25 + 0.5 * index}"
    phantom.write(tmp_path / "study")
    uid = phantom.series_uid
    mask = upright.with_array(upright.array.copy())
    mask.array[3:8, 12:20, 10:20] = 1
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert facts.resampled
    assert facts.millilitres["Brain"] == pytest.approx(5 * 8 * 10 * 2 / 1000, rel=0.1)
    assert_valid(facts.path)
    for group in seg.PerFrameFunctionalGroupsSequence:
        _, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        assert y - 12.25 == pytest.approx((z - 80) / 4, abs=1e-6)


def test_a_mask_on_another_grid_is_resampled_and_says_so(tmp_path):
    volume = grid(shape=(12, 40, 40), spacing=(3, 1, 1))
    uid = write_series(tmp_path / "study", volume, series_uid())
    fine = volume.affine_lps.copy()
    fine[:3, :3] = fine[:3, :3] @ np.diag([1 / 3, 1.7, 1.7])
    mask = Volume(np.zeros((34, 23, 23), np.uint8), fine)
    mask.array[8:26, 6:16, 5:15] = 1
    facts, seg = written(tmp_path, mask, f"{uid}.nii.gz")
    assert facts.resampled
    assert seg.ContentDescription == "resampled to the source's slices"
    assert facts.millilitres["Brain"] == pytest.approx(18 * 10 * 10 * 1.7**2 / 1000, rel=0.12)
    assert_valid(facts.path)


def test_a_cropped_mask_stays_in_its_place(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = blobs(volume)
    mask.array[[0, 1, 6]] = 0
    mask.array[:, :2] = 0
    cropped_affine = mask.affine_lps.copy()
    cropped_affine[:3, 3] = mask.position_mm([2, 2, 0])
    facts, seg = written(tmp_path, Volume(mask.array[2:6, 2:].copy(), cropped_affine), f"{uid}.mhd")
    assert not facts.resampled
    assert np.array_equal(voxels_of(seg, mask), mask.array)


def test_a_single_slice(tmp_path):
    volume = grid(shape=(1, 9, 8))
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = blobs(volume)
    mask.array[0, 2, 3] = 1
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)
    assert_valid(facts.path)


def test_a_localizer_in_the_same_series_is_left_alone(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    change = with_values(SOPInstanceUID=generate_uid(), InstanceNumber=99)
    write_series(tmp_path / "study" / "localizer", grid("sagittal", shape=(1, 9, 8)), uid, change=change)
    mask = blobs(volume)
    _, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)


# ---------------------------------------------------------------- segments


def test_one_segment_for_each_label_there_is(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = blobs(volume, labels=(2, 7))
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Tumor", "Segment 7"]
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1, 2]
    expected = np.select([mask.array == 2, mask.array == 7], [1, 2])
    assert np.array_equal(voxels_of(seg, mask), expected)
    voxel_ml = 3.0 * 0.9 * 1.1 / 1000
    assert facts.millilitres == pytest.approx(
        {"Tumor": (mask.array == 2).sum() * voxel_ml, "Segment 7": (mask.array == 7).sum() * voxel_ml}, abs=1e-3
    )
    assert_valid(facts.path)


def test_empty_frames_are_left_out(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = volume.with_array(volume.array.copy())
    mask.array[2, 1, 1] = mask.array[5, 1, 1] = 1
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert facts.frames == seg.NumberOfFrames == 2
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 2


def test_an_empty_mask_fails_and_names_the_remedy(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    with pytest.raises(MaskUnusable, match=r"nothing was segmented.*NVIDIA_SEG_ALLOW_EMPTY=true"):
        written(tmp_path, volume, f"{uid}.mhd")
    assert not list((tmp_path / "seg").iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_an_empty_mask_is_a_finding_where_that_is_allowed(tmp_path, named):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    options = SegOptions(names=("Lesion",), allow_empty=True, job="j", created=NOON)
    facts, seg = written(tmp_path, volume, f"{uid if named else 'mask'}.mhd", options=options)
    assert facts.frames == volume.shape[0]
    assert facts.millilitres == {"Lesion": 0}
    assert not seg.pixel_array.any()
    assert_valid(facts.path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32(0.5), "fractions.*Threshold"),
        (np.int16(-5), "outside 0..65535"),
        (np.float32(np.nan), "fractions"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, values, message):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    with pytest.raises(MaskUnusable, match=message):
        written(tmp_path, volume.with_array(np.full(volume.shape, values)), f"{uid}.mhd")


def test_a_float_mask_with_whole_numbers_is_taken(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    mask = blobs(volume)
    _, seg = written(tmp_path, mask.with_array(mask.array.astype(np.float32)), f"{uid}.nii.gz")
    assert np.array_equal(voxels_of(seg, mask), mask.array)


# ---------------------------------------------------------------- which series


def two_series(tmp_path, *, shift=0.0):
    """Two series on the same grid, or on shifted ones; returns grid and UIDs."""
    volume = grid()
    other = Volume(volume.array, np.array(volume.affine_lps) + np.array([[0, 0, 0, shift]] * 3 + [[0] * 4]))
    return volume, [
        write_series(tmp_path / "study" / str(number), which, series_uid(number))
        for number, which in enumerate([volume, other], start=1)
    ]


@pytest.mark.parametrize("pattern", ["{}.mhd", "{}-2.mhd", "{}_seg.nii.gz", "{}.nii"])
def test_the_file_name_names_the_series(tmp_path, pattern):
    volume, uids = two_series(tmp_path)
    facts, seg = written(tmp_path, blobs(volume), pattern.format(uids[1]))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uids[1]
    assert facts.found_by == "file name"


def test_a_longer_uid_is_not_taken_for_a_shorter_one(tmp_path):
    volume = grid()
    short, long = "1.2.3.4.5", "1.2.3.4.5.6"
    for uid in (short, long):
        write_series(tmp_path / "study" / uid, volume, uid)
    _, seg = written(tmp_path, blobs(volume), f"{long}.mhd")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == long


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("selected-images.json", lambda uid: {"version": 1, "selected": [{"series": uid, "images": ["brain.mhd"]}]}),
        ("selected-images.json", lambda uid: {"selected": [{"series": uid, "images": ["other.nii.gz"]}]}),
        ("selected-images.json", lambda uid: {uid: "brain.nii.gz"}),
        ("selected-images.json", lambda uid: {uid: ["a.mhd", "brain.mhd"]}),
        ("series-images.json", lambda uid: {"version": 1, "images": [{"series": uid, "files": ["brain.nii.gz"]}]}),
    ],
)
def test_a_hint_file_names_the_series(tmp_path, file, hint):
    volume, uids = two_series(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / file).write_text(json.dumps(hint(uids[1])))
    facts, seg = written(tmp_path, blobs(volume), "brain.mhd")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uids[1]
    assert facts.found_by == "hint file"


@pytest.mark.parametrize("text", ["", "[1, {", '{"selected": [{"series": "9.9.9.9", "images": ["brain.mhd"]}]}', "3"])
def test_a_hint_file_that_says_nothing_useful_is_passed_over(tmp_path, text):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "selected-images.json").write_text(text)
    facts, seg = written(tmp_path, blobs(volume), "brain.mhd")
    assert (seg.ReferencedSeriesSequence[0].SeriesInstanceUID, facts.found_by) == (uid, "geometry")


def test_without_a_name_the_series_on_the_masks_grid_is_the_source(tmp_path):
    volume, uids = two_series(tmp_path, shift=0.5)
    facts, seg = written(tmp_path, blobs(volume), "brain.mhd")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uids[0]
    assert facts.found_by == "geometry"


def test_two_series_on_the_masks_grid_are_not_guessed_between(tmp_path):
    volume, _ = two_series(tmp_path)
    with pytest.raises(NoSource, match="2 series of the originals have slices where the mask lies"):
        written(tmp_path, blobs(volume), "brain.mhd")


def test_the_wrong_study_is_refused(tmp_path):
    volume = grid()
    far = Volume(volume.array, np.array(volume.affine_lps) + np.array([[0, 0, 0, 500.0]] * 3 + [[0] * 4]))
    uid = write_series(tmp_path / "study", far, series_uid())
    with pytest.raises(NoSource, match="none of the 1 series of the originals matches the mask"):
        written(tmp_path, blobs(volume), "brain.mhd")
    with pytest.raises(NoSource, match=r"100\.0% of the mask lies where its series has no slice"):
        written(tmp_path, blobs(volume), f"{uid}.mhd")


def test_a_study_without_images_is_refused(tmp_path):
    (tmp_path / "study").mkdir()
    with pytest.raises(NoSource, match="no image with a place in the patient"):
        written(tmp_path, blobs(grid()), "brain.mhd")


@pytest.mark.parametrize("fault", ["missing", "truncated in its header", "not DICOM"])
def test_a_slice_that_is_missing_under_the_mask_is_an_error(tmp_path, fault):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    victim = sorted((tmp_path / "study").iterdir())[3]
    if fault == "missing":
        victim.unlink()
    else:
        end = {"truncated in its header": 400, "not DICOM": 100}[fault]
        victim.write_bytes(victim.read_bytes()[:end])
    mask = volume.with_array(volume.array.copy())
    mask.array[2:5, 2:6, 2:6] = 1
    with pytest.raises(NoSource, match=r"33\.3% of the mask lies where its series has no slice.*missing or truncated"):
        written(tmp_path, mask, f"{uid}.mhd")


def test_a_slice_that_is_truncated_in_its_pixels_still_has_a_place(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    victim = sorted((tmp_path / "study").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-50])
    mask = blobs(volume)
    _, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert np.array_equal(voxels_of(seg, mask), mask.array)


# ---------------------------------------------------------------- attributes


def test_patient_study_and_series_attributes(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid(), modality="CT")
    facts, seg = written(tmp_path, blobs(volume), f"{uid}.mhd")
    source = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "StudyDescription",
        "AccessionNumber",
        "ReferringPhysicianName",
        "FrameOfReferenceUID",
        "PositionReferenceIndicator",
    ):
        assert seg[keyword].value == source[keyword].value, keyword
    assert seg.Modality == "SEG"
    assert seg.SeriesDescription == "T1 mprage - AI"
    assert seg.SeriesNumber == 1003
    assert seg.SeriesInstanceUID != uid
    assert seg.Manufacturer == "clara-flow"
    assert seg.SourceImageSequence[0].ReferencedSOPClassUID == CTImageStorage
    assert_valid(facts.path)


def without(*keywords):
    def change(header):
        for keyword in keywords:
            delattr(header, keyword)

    return change


def with_values(**values):
    def change(header):
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


@pytest.mark.filterwarnings("ignore")  # pydicom warns of the bad values that this test writes
@pytest.mark.parametrize(
    "change",
    [
        without("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
        without("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
        without("FrameOfReferenceUID", "PositionReferenceIndicator"),
        without("SeriesNumber", "SeriesDescription", "InstanceNumber", "Manufacturer"),
        without("SliceThickness"),
        without("StudyInstanceUID"),
        with_values(StudyID="", PatientID="", SeriesNumber=None, SeriesDescription=""),
        with_values(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100"),
        with_values(PatientName="Yamada^Tarou=山田^太郎", SpecificCharacterSet=["", "ISO 2022 IR 87"]),
        with_values(PatientName="Wang^XiaoDong=王^小东", SpecificCharacterSet="GB18030"),
        with_values(PatientName="Иванов^Иван", SpecificCharacterSet="ISO_IR 192"),
        with_values(PatientSex="U", PatientBirthDate="unknown", StudyDate="2030-01-01", StudyTime="noon"),
        with_values(SeriesDescription="x" * 64, SeriesNumber=2**31 - 1),
        with_values(SeriesNumber=-7, TimezoneOffsetFromUTC="-0330"),
        with_values(
            LossyImageCompression="01", LossyImageCompressionRatio="10", LossyImageCompressionMethod="ISO_10918_1"
        ),
    ],
)
def test_odd_sources_give_valid_objects(tmp_path, change):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid(), change=change)
    mask = blobs(volume)
    facts, seg = written(tmp_path, mask, f"{uid}.mhd")
    assert_valid(facts.path)
    assert np.array_equal(voxels_of(seg, mask), mask.array)
    source = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    assert str(seg.PatientName) == str(source.get("PatientName", ""))
    assert 0 < seg.SeriesNumber < 2**31


def test_a_label_outside_the_sources_character_set_makes_the_object_utf8(tmp_path):
    volume = grid()
    change = with_values(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    uid = write_series(tmp_path / "study", volume, series_uid(), change=change)
    options = SegOptions(names=("脳",), job="j", created=NOON)
    facts, seg = written(tmp_path, blobs(volume), f"{uid}.mhd", options=options)
    assert seg.SegmentSequence[0].SegmentLabel == "脳"
    assert str(seg.PatientName) == "Müller^Jörg"
    assert_valid(facts.path)


def test_time_of_creation_is_told_in_the_sources_time_zone(tmp_path):
    volume = grid()
    change = with_values(TimezoneOffsetFromUTC="-0330")
    uid = write_series(tmp_path / "study", volume, series_uid(), change=change)
    _, seg = written(tmp_path, blobs(volume), f"{uid}.mhd")
    assert (seg.ContentDate, seg.ContentTime, seg.TimezoneOffsetFromUTC) == ("20300101", "083000", "-0330")


# ---------------------------------------------------------------- identity


def test_the_same_job_gives_the_same_bytes_another_job_other_uids(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    results = []
    for job, stage in [("job-1", "a"), ("job-1", "a"), ("job-2", "a"), ("job-1", "b")]:
        options = SegOptions(job=job, stage=stage, created=NOON)
        facts, seg = written(tmp_path, blobs(volume), f"{uid}.mhd", options=options)
        results.append((facts.path.read_bytes(), seg.SOPInstanceUID, seg.SeriesInstanceUID))
    assert results[0] == results[1]
    assert len({uid for _, uid, _ in results}) == len({series for _, _, series in results}) == 3


def test_another_mask_in_the_same_job_is_another_instance_of_the_same_series(tmp_path):
    volume = grid()
    uid = write_series(tmp_path / "study", volume, series_uid())
    objects = [
        written(tmp_path, blobs(volume, seed=seed), f"{uid}-{seed}.mhd", instance_number=seed)[1] for seed in (1, 2)
    ]
    assert objects[0].SOPInstanceUID != objects[1].SOPInstanceUID
    assert objects[0].SeriesInstanceUID == objects[1].SeriesInstanceUID
    assert [seg.InstanceNumber for seg in objects] == [1, 2]


# ---------------------------------------------------------------- the operator


# no file may grow beyond 4 KiB: what a full disk is to the operator, without filling one
LIMITED_MAIN = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from clara_flow.operators.dicom_seg_writer.__main__ import main
main()
"""


class Stage:
    """A writer stage with its folders; `run` calls the operator as the platform does."""

    def __init__(self, folder):
        self.masks, self.study, self.output, self.report = (folder / n for n in ("masks", "study", "output", "report"))
        for path in (self.masks, self.study, self.output):
            path.mkdir()
        self.manifest = folder / "manifest.json"
        self.job_id = "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11"

    def run(self, *, command=(sys.executable, "-m", "clara_flow.operators.dicom_seg_writer"), **variables):
        document = {
            "job_id": self.job_id,
            "stage": "seg-writer",
            "inputs": [
                {"name": "segmentation", "from": "brain", "path": str(self.masks)},
                {"name": "study", "from": "", "path": str(self.study)},
            ],
            "outputs": [{"name": "dicom", "path": str(self.output)}],
            "report_dir": str(self.report),
        }
        self.manifest.write_text(json.dumps(document))
        environment = {"PATH": os.environ["PATH"], "CLARA_IO_MANIFEST": str(self.manifest), "SOURCE_DATE_EPOCH": "1"}
        return subprocess.run(
            command,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_the_operator_writes_reports_and_keeps_the_patient_out_of_its_log(stage):
    volume = grid()
    change = with_values(PatientName="Secret^Person", PatientSex="Q", PatientBirthDate="long ago", StudyDate="x")
    with pytest.warns(UserWarning, match="Invalid value"):
        uid = write_series(stage.study, volume, series_uid(), change=change)
    write_volume(stage.masks / f"{uid}.mhd", blobs(volume))
    done = stage.run(NVIDIA_SEG_LABELS=r"[\"Brain\"]")
    assert done.returncode == 0, done.stdout
    (path,) = stage.output.iterdir()
    seg = hd.seg.segread(path)
    assert path.name == f"{seg.SOPInstanceUID}.dcm"
    assert seg.SegmentSequence[0].SegmentLabel == "Brain"
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "brain"  # the operator that made the mask
    report = json.loads((stage.report / "metrics.json").read_text())
    assert report["masks"] == 1
    assert set(report["segmentations"][0]["millilitres"]) == {"Brain"}
    for secret in ("Secret", "long ago", uid, "PHANTOM", seg.SOPInstanceUID):
        assert secret not in done.stdout + done.stderr
    first = path.read_bytes()
    assert stage.run(NVIDIA_SEG_LABELS=r"[\"Brain\"]").returncode == 0
    assert [path.read_bytes() for path in stage.output.iterdir()] == [first]


def test_the_job_that_the_platform_tells_makes_the_uids(stage):
    """The same job run again writes the same file; another job on the same study one more, in another series."""
    volume = grid()
    uid = write_series(stage.study, volume, series_uid())
    write_volume(stage.masks / f"{uid}.mhd", blobs(volume))
    other = "0d1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f12"
    for job_id in (stage.job_id, stage.job_id, other):
        stage.job_id = job_id
        assert stage.run().returncode == 0
    first, second = (pydicom.dcmread(path) for path in stage.output.iterdir())
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SeriesDescription == second.SeriesDescription == "T1 mprage - AI"
    assert first.SeriesNumber == second.SeriesNumber > 3  # beyond those of the study


def test_one_bad_mask_fails_the_operator_and_the_others_are_written(stage):
    volume = grid()
    uid = write_series(stage.study, volume, series_uid())
    write_volume(stage.masks / f"{uid}-1.mhd", volume)
    write_volume(stage.masks / f"{uid}-2.mhd", blobs(volume))
    done = stage.run()
    assert done.returncode == 1
    assert "mask 1 of 2 gives no segmentation: the mask is empty" in done.stdout
    assert [pydicom.dcmread(path).InstanceNumber for path in stage.output.iterdir()] == [2]
    assert "Traceback" not in done.stdout


def test_a_full_disk_is_told_and_leaves_no_file(stage):
    volume = grid(shape=(40, 64, 64))
    uid = write_series(stage.study, volume, series_uid())
    write_volume(stage.masks / f"{uid}.mhd", volume.with_array(np.ones(volume.shape, np.uint8)))
    limited = [sys.executable, "-c", LIMITED_MAIN]
    done = stage.run(command=limited)
    assert done.returncode == 1
    assert "its segmentation written: File too large" in done.stdout
    assert "Traceback" not in done.stdout
    assert list(stage.output.iterdir()) == []


def test_an_allowed_empty_mask_is_told(stage):
    volume = grid()
    uid = write_series(stage.study, volume, series_uid())
    write_volume(stage.masks / f"{uid}.mhd", volume)
    done = stage.run(NVIDIA_SEG_ALLOW_EMPTY="true")
    assert done.returncode == 0, done.stdout
    assert "is empty; its segmentation says that nothing was found" in done.stdout


@pytest.mark.parametrize(
    ("variables", "with_mask", "message"),
    [
        ({}, False, "no mask (.mhd, .mha, .nii, .nii.gz) in"),
        ({"NVIDIA_SEG_LABELS": "Brain"}, True, "NVIDIA_SEG_LABELS must be a JSON list"),
        ({}, True, "the originals hold no image"),
    ],
)
def test_what_cannot_be_used_is_told(stage, variables, with_mask, message):
    if with_mask:
        write_volume(stage.masks / "brain.mhd", blobs(grid()))
    done = stage.run(**variables)
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(stage.output.iterdir()) == []
