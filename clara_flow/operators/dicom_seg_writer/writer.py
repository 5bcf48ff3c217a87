"""One DICOM Segmentation object from one mask.

highdicom builds the object. It is handed a clean stand-in for each source frame, because real headers lack or garble
what it asks for, and because it takes multi-frame instances only whole; afterwards the references are set to the real
instances and frames.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, config
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DT, format_number_as_ds, validate_value

from clara_flow import __version__
from clara_flow.operators.dicom_seg_writer.matching import Hints, Source, find_source
from clara_flow.operators.dicom_seg_writer.segments import describe_segment, long_string
from clara_flow.operators.dicom_seg_writer.source import UNREADABLE, Study, sop_class_of, spacing_mm
from clara_flow.operators.imaging import Volume, read_volume
from clara_flow.operators.imaging.dicom_files import Frame
from clara_flow.operators.imaging.dicom_stacks import Stack
from clara_flow.operators.sdk import replace_file

MANUFACTURER = "clara-flow"
_IS_LIMIT = 2**31 - 1  # of an Integer String, PS3.5 6.2
_LAST_GROUP = 0x0040  # the modules of patient and study end here
_TYPE_2 = (  # present, maybe empty: Patient, General Study (PS3.3 C.7.1.1, C.7.2.1)
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


class MaskUnusable(ValueError):
    """A mask that cannot become a segmentation: no whole numbers, or nothing segmented."""


@dataclass(frozen=True, kw_only=True)
class SegOptions:
    """What the pipeline says about the segmentations.

    names               item i names label value i + 1.
    algorithm_name      of the network or method that made the masks.
    algorithm_version   of the same.
    allow_empty         a mask without any label gives an object whose frames are all empty, instead of MaskUnusable.
    job, stage          identity of the job and name of the operator in it: UIDs are derived from them.
    created             time of creation, with a time zone; None = now, or SOURCE_DATE_EPOCH where that is set.
    """

    names: tuple[str, ...] = ()
    algorithm_name: str = "AI"
    algorithm_version: str = "unknown"
    allow_empty: bool = False
    job: str
    stage: str = "dicom-seg-writer"
    created: datetime | None = None


@dataclass(frozen=True)
class SegFacts:
    """What was written.

    path            the object's file.
    frames          its frames, over all segments.
    millilitres     {segment's name: volume as written}.
    resampled       the mask was on another grid, so its labels were taken at the nearest voxel.
    lost            share of the mask's voxels beyond the frames, 0..1; only where resampled.
    found_by        how the source series was found (see `matching.Source`).
    """

    path: Path
    frames: int
    millilitres: dict[str, float]
    resampled: bool
    lost: float
    found_by: str


def write_seg(
    mask_path: Path, study: Study, output_dir: Path, *, hints: Hints, options: SegOptions, instance_number: int = 1
) -> SegFacts:
    """Write the segmentation of one mask, `<its SOP Instance UID>.dcm`: BINARY, one segment per label, no empty frames.

    mask_path           volume file with whole numbers, 0 = nothing; any orientation of storage.
    instance_number     unique among the objects of this job and stage that have the same source series.

    The same mask, source, options and time give the same bytes; SOP Instance UID depends on mask, source, job and
    stage, Series Instance UID on source, job and stage: whoever does the same job again makes the same instance, and
    another job on the same study makes another one (PS3.3 A.51). The file is there whole or not at all.
    Raises MaskUnusable, matching.NoSource, VolumeFileError, GeometryError, OSError.
    """
    mask = _labels_only(read_volume(mask_path))
    values = [int(value) for value in np.unique(mask.array) if value != 0]
    if not values and not options.allow_empty:
        raise MaskUnusable(
            "the mask is empty: nothing was segmented. Where that is a valid finding, set NVIDIA_SEG_ALLOW_EMPTY=true "
            "to get a segmentation without any marked pixel"
        )
    source = find_source(mask_path.name, mask, study, hints)
    segments = values or list(range(1, max(len(options.names), 1) + 1))
    series_uid = generate_uid(entropy_srcs=[source.series.uid, options.job, options.stage, "series"])
    digest = hashlib.sha256(mask.affine_lps.tobytes() + np.ascontiguousarray(mask.array).tobytes()).hexdigest()
    instance_uid = generate_uid(entropy_srcs=[series_uid, mask_path.name, digest])
    seg, kept = _segmentation(source, segments, options, series_uid, instance_uid, instance_number)
    _set_series(seg, source, study)
    _set_references(seg, kept, source.series.multi_frame)
    dimension_uid = generate_uid(entropy_srcs=[instance_uid, "dimensions"])
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    content = io.BytesIO()
    seg.save_as(content, enforce_file_format=True)
    output_path = output_dir / f"{instance_uid}.dcm"
    replace_file(output_path, content.getvalue())
    return SegFacts(
        output_path,
        int(seg.NumberOfFrames),
        _volumes_ml(source, segments, [str(item.SegmentLabel) for item in seg.SegmentSequence]),
        not source.fit.same_grid,
        source.fit.uncovered,
        source.found_by,
    )


def _labels_only(mask: Volume) -> Volume:
    """The mask with labels of an integer type. Raises MaskUnusable."""
    array = mask.array
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.rint(array)):
            raise MaskUnusable("the mask holds fractions; is it a map of probabilities? Threshold it before this step")
        array = array.astype(np.int64)
    if array.dtype.kind in "iu" and (array.min() < 0 or array.max() > np.iinfo(np.uint16).max):
        raise MaskUnusable("the mask holds labels outside 0..65535; is it an image instead of a mask?")
    return mask.with_array(array.astype(np.uint16))


def _segmentation(
    source: Source, segments: Sequence[int], options: SegOptions, series_uid: str, instance_uid: str, number: int
) -> tuple[hd.seg.Segmentation, list[Frame]]:
    """The object, its references still to the stand-ins, and the source frames in the order of the stand-ins."""
    stack = source.fit.stack
    kept = sorted(source.fit.labels) or list(range(len(stack.frames)))
    frames = [stack.frames[index] for index in kept]
    numbers = np.zeros(max(segments) + 1, np.uint8 if len(segments) < 256 else np.uint16)
    numbers[list(segments)] = np.arange(1, len(segments) + 1)
    pixels = np.zeros((len(frames), *frames[0].shape), numbers.dtype)
    for place, index in enumerate(kept):
        if index in source.fit.labels:
            pixels[place] = numbers[source.fit.labels[index]]
    descriptions = [
        describe_segment(
            order,
            label,
            options.names,
            algorithm_name=options.algorithm_name,
            algorithm_version=options.algorithm_version,
        )
        for order, label in enumerate(segments, start=1)
    ]
    header = source.series.header
    created = _moment(options.created, header)
    seg = hd.seg.Segmentation(
        source_images=_stand_ins(stack, frames, header),
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=series_uid,
        series_number=1,
        sop_instance_uid=instance_uid,
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="DICOM SEG Writer",
        software_versions=__version__,
        device_serial_number=hashlib.sha256(options.stage.encode()).hexdigest()[:16],
        content_label="SEGMENTATION",
        content_description="resampled to the source's slices" if not source.fit.same_grid else "on the source's grid",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(source.fit.labels),
        content_date=created.date(),
        content_time=created.time(),
        series_description=long_string(str(header.get("SeriesDescription", "") or ""), ending=" - AI").strip(" -"),
        specific_character_set=_character_set(header, descriptions),
    )
    seg.InstanceCreationDate, seg.InstanceCreationTime = seg.ContentDate, seg.ContentTime
    for equipment in seg.ContributingEquipmentSequence:
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = DT(created.replace(tzinfo=None))
    return seg, frames


def _stand_ins(stack: Stack, frames: Sequence[Frame], header: Dataset) -> list[Dataset]:
    """A single-frame header for each frame, numbered from 1. The first carries patient and study."""
    stand_ins = []
    first = stack.frames[0]
    series_uid, spacing = first.instance.series_uid, spacing_mm(stack)
    thickness = _decimal(header.get("SliceThickness")) or spacing or min(first.pixel_mm)
    frame_of_reference = first.frame_of_reference_uid or generate_uid(entropy_srcs=[series_uid, "frame of reference"])
    study_uid = header.get("StudyInstanceUID") or generate_uid(entropy_srcs=[series_uid, "study"])
    for number, frame in enumerate(frames, start=1):
        stand_in = _patient_and_study(header) if number == 1 else Dataset()
        stand_in.SOPClassUID = MRImageStorage
        stand_in.SOPInstanceUID = _stand_in_uid(number)
        stand_in.StudyInstanceUID = study_uid
        stand_in.SeriesInstanceUID = series_uid
        stand_in.FrameOfReferenceUID = frame_of_reference
        stand_in.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")
        stand_in.Modality = first.instance.modality or "OT"
        stand_in.Rows, stand_in.Columns = frame.shape
        stand_in.ImageOrientationPatient = _decimals(*first.direction[:, 2], *first.direction[:, 1])
        stand_in.ImagePositionPatient = _decimals(*frame.origin)
        stand_in.PixelSpacing = _decimals(*first.pixel_mm)
        stand_in.SliceThickness = _decimals(thickness)
        if spacing:
            stand_in.SpacingBetweenSlices = _decimals(spacing)
        if str(header.get("LossyImageCompression", "")) == "01":
            for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
                if keyword in header:
                    stand_in[keyword] = header[keyword]
        stand_ins.append(stand_in)
    return stand_ins


def _decimals(*values: float) -> list[str]:
    """Values of a Decimal String: 16 characters each, and no "-0.0"."""
    return [format_number_as_ds(float(value) + 0.0) for value in values]


def _decimal(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _stand_in_uid(number: int) -> str:
    return f"2.25.{number}"


def _patient_and_study(header: Dataset) -> Dataset:
    """What the source says about patient and study; values that DICOM does not allow are left out.

    highdicom copies from it the attributes of the Patient, Study and Clinical Trial modules and no others.
    """
    copy = Dataset()
    for tag in sorted(header.keys()):
        if tag.group > _LAST_GROUP or tag.is_private:
            continue
        try:
            element = header[tag]
            for value in element.value if element.VM > 1 else [element.value]:
                validate_value(element.VR, value, config.RAISE)
        except UNREADABLE:
            continue
        if element.VR != "SQ":
            copy.add(deepcopy(element))  # a data set that shares elements with another changes both
    for keyword in _TYPE_2:
        if keyword not in copy:
            setattr(copy, keyword, "")
    if copy.PatientSex not in ("M", "F", "O"):
        copy.PatientSex = ""
    return copy


def _moment(created: datetime | None, header: Dataset) -> datetime:
    """Time of creation as the object says it: in the source's time zone where that is known, else in the local one.

    DICOM's dates and times are local; one Timezone Offset From UTC holds for the whole object (PS3.3 C.12.1).
    """
    if created is None:
        epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
        created = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    offset = str(header.get("TimezoneOffsetFromUTC", "") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        return created.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))
    return created.astimezone()


def _character_set(header: Dataset, descriptions: Sequence[Dataset]) -> str | None:
    """The source's character set where all text fits into it for sure, else UTF-8."""
    given = header.get("SpecificCharacterSet") or None
    ours_is_ascii = all(str(description.SegmentLabel).isascii() for description in descriptions)
    known = {value.value for value in hd.SpecificCharacterSetValues}
    if ours_is_ascii and (given is None or (isinstance(given, str) and given in known)):
        return given
    return "ISO_IR 192"


def _set_series(seg: Dataset, source: Source, study: Study) -> None:
    """Series Number beyond those of all images of the study, the same for all objects of one source series."""
    order = list(study.series).index(source.series.uid)
    numbers = [int(_decimal(series.header.get("SeriesNumber")) or 0) for series in study.series.values()]
    number = max(numbers) + 1000 + order
    seg.SeriesNumber = number if 0 < number <= _IS_LIMIT else 1000 + order
    if "TimezoneOffsetFromUTC" in source.series.header:
        seg.TimezoneOffsetFromUTC = source.series.header.TimezoneOffsetFromUTC


def _set_references(seg: Dataset, frames: Sequence[Frame], multi_frame: Container[str]) -> None:
    """Point every reference at the real instance, and frame, instead of at its stand-in."""
    classes = {frame.instance.sop_instance_uid: sop_class_of(frame) for frame in frames}
    by_stand_in = {_stand_in_uid(number): frame for number, frame in enumerate(frames, start=1)}
    for group in seg.PerFrameFunctionalGroupsSequence:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]  # one object for all segments of a frame
        if frame := by_stand_in.get(item.ReferencedSOPInstanceUID):
            uid = frame.instance.sop_instance_uid
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = classes[uid], uid
            if uid in multi_frame:
                item.ReferencedFrameNumber = frame.index + 1
    seg.SourceImageSequence = _references(classes)
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = _references(classes)


def _references(classes: Mapping[str, str]) -> list[Dataset]:
    """An item for each {SOP Instance UID: SOP Class UID}."""
    items = []
    for uid, sop_class in classes.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    return items


def _volumes_ml(source: Source, segments: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    """Volume of each segment as written; slices count with their distance."""
    stack = source.fit.stack
    row_mm, column_mm = stack.frames[0].pixel_mm
    voxel_ml = row_mm * column_mm * (spacing_mm(stack) or 0.0) / 1000
    counts: Any = sum(
        (np.bincount(labels.ravel(), minlength=max(segments) + 1) for labels in source.fit.labels.values()),
        start=np.zeros(max(segments) + 1, np.int64),
    )
    return {name: round(float(counts[label]) * voxel_ml, 3) for label, name in zip(segments, names, strict=True)}
