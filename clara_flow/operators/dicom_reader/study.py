"""A folder of DICOM files becomes volume files: one for each series that can be a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clara_flow.operators.dicom_reader.report import Converted, Refused, Report, Slice, count_reasons
from clara_flow.operators.imaging import Volume, write_volume
from clara_flow.operators.imaging.dicom_files import Found, Frame, LeftOut, read_folder
from clara_flow.operators.imaging.dicom_pixels import PixelsUnreadable, read_voxels
from clara_flow.operators.imaging.dicom_stacks import Stack, StackUnusable, grid_of, split_into_stacks

IMAGE_FORMATS = ("mhd", "nii", "nii.gz")
"""Endings that the reader writes; the first is Clara's."""


class StudyUnusable(ValueError):
    """A study from which nothing may be made at all; the text says why, without names or identifiers."""


def read_study(
    input_dir: Path, output_dir: Path, *, image_format: str = "mhd", tell: Callable[[str], None] = lambda line: None
) -> Report:
    """Write `<Series Instance UID>.<image_format>` for each series below `input_dir`, and `reader-report.json`.

    input_dir       any files in any folders; what is not a usable image is left out and listed in the report.
    output_dir      must exist. Several volumes of one series get the suffixes -1, -2 in the order of instance numbers.
    image_format    one of IMAGE_FORMATS.
    tell            is given a line of progress for each series, without names or identifiers.

    Volumes hold real values (rescaled), slices in the order of the normal (PS3.3 C.7.6.2.1.1). A series that cannot be
    a volume is refused and the others go on; a report without volumes is the caller's failure.
    Raises StudyUnusable for no files, no DICOM, several patients; ValueError for another format; OSError.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"{image_format!r} is not a format of the reader; choose {', '.join(IMAGE_FORMATS)}")
    found = read_folder(input_dir)
    _check_study(found)
    left_out = list(found.left_out)
    converted: list[Converted] = []
    refused: list[Refused] = []
    warnings: list[str] = []
    all_series = _by_series(found.frames)
    for number, frames in enumerate(all_series, start=1):
        name = f"series {number} of {len(all_series)}"
        tell(f"{name}: {_slices(len(frames))}")
        outcome = _convert_series(frames, output_dir, image_format)
        converted += outcome.converted
        refused += outcome.refused
        left_out += outcome.left_out
        warnings += [f"{name}: {warning}" for warning in outcome.warnings]
        warnings += [f"{name} gives no volume of {reason}" for reason in outcome.refused]
    report = Report(tuple(converted), tuple(refused), tuple(left_out), (*count_reasons(left_out), *warnings))
    report.write(output_dir)
    return report


@dataclass
class _Outcome:
    """What became of one series."""

    converted: list[Converted]
    refused: list[Refused]
    left_out: list[LeftOut]
    warnings: list[str]

    def refuse(self, stack: Stack, problem: StackUnusable) -> None:
        """Keep the reason; stacks of a series that share one are told as one, such as the planes of a localiser."""
        instance, slices = stack.frames[0].instance, len(stack.frames)
        for place, known in enumerate(self.refused):
            if known.reason == str(problem):
                self.refused[place] = replace(known, slices=known.slices + slices)
                return
        self.refused.append(Refused(instance.series_uid, instance.modality, slices, str(problem)))


def _convert_series(frames: Sequence[Frame], output_dir: Path, image_format: str) -> _Outcome:
    unique, repeated = _without_repeats(frames)
    outcome = _Outcome([], [], repeated, [])
    usable: list[Stack] = []
    stacks = split_into_stacks(unique)
    for stack in stacks:
        try:
            _check_worth(stack, stacks)
            grid_of(stack)
            usable.append(stack)
        except StackUnusable as problem:
            outcome.refuse(stack, problem)
    for suffix, stack in enumerate(usable, start=1):
        uid = stack.frames[0].instance.series_uid
        name = f"{uid}-{suffix}.{image_format}" if len(usable) > 1 else f"{uid}.{image_format}"
        try:
            volume = _read(stack, outcome)
        except StackUnusable as problem:
            outcome.refuse(stack, problem)
            continue
        write_volume(output_dir / name, volume)
        outcome.converted.append(_converted(name, stack, volume))
    return outcome


def _check_study(found: Found) -> None:
    """Raises StudyUnusable where nothing may be made of the folder."""
    if not found.instances and not found.left_out:
        raise StudyUnusable("the input folder holds no files to read; was a study sent?")
    if not found.instances:
        reasons = "; ".join(count_reasons(found.left_out))
        raise StudyUnusable(f"the input folder holds no DICOM image ({reasons}); give a folder of DICOM files")
    if found.patients > 1:
        raise StudyUnusable(
            f"the input folder holds {found.patients} patients (their Patient IDs differ, or names and birth dates "
            "where there is no ID); give one patient's files, so that no result goes to another"
        )


def _by_series(frames: Iterable[Frame]) -> list[list[Frame]]:
    series: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        series[frame.instance.series_uid].append(frame)
    return list(series.values())


def _without_repeats(frames: Sequence[Frame]) -> tuple[list[Frame], list[LeftOut]]:
    """Frames of the first file of each SOP Instance UID, and the files that come after it."""
    first: dict[str, str] = {}
    for frame in frames:
        first.setdefault(frame.instance.sop_instance_uid, frame.instance.file)
    kept = [frame for frame in frames if first[frame.instance.sop_instance_uid] == frame.instance.file]
    repeated = {frame.instance.file for frame in frames} - set(first.values())
    return kept, [LeftOut(file, "repeats an instance of another file") for file in sorted(repeated)]


def _check_worth(stack: Stack, stacks: Sequence[Stack]) -> None:
    """Raises StackUnusable for localisers, which a step that follows would take for a volume."""
    instance = stack.frames[0].instance
    if instance.modality == "CT" and "LOCALIZER" in instance.image_type:
        raise StackUnusable("a localiser is a projection, not a slice")
    if len(stack.frames) == 1 and len(stacks) > 1 and not stack.label:
        raise StackUnusable("a single slice of another orientation, size or place than the rest of its series")


def _read(stack: Stack, outcome: _Outcome) -> Volume:
    """The stack's voxels on its grid.

    Raises StackUnusable where the pixels of any slice cannot be read: a volume without it would pass for a whole one.
    """
    try:
        return Volume(read_voxels(stack.frames), grid_of(stack))
    except PixelsUnreadable as problem:
        outcome.left_out += [LeftOut(file, reason) for file, reason in problem.reasons.items()]
        cause = next(iter(problem.reasons.values()))
        lost = sum(frame.instance.file in problem.reasons for frame in stack.frames)
        every = lost == len(stack.frames)
        raise StackUnusable(cause if every else f"{lost} of its slices cannot be read: {cause}") from None


def _converted(name: str, stack: Stack, volume: Volume) -> Converted:
    first = stack.frames[0]
    return Converted(
        file=name,
        series_uid=first.instance.series_uid,
        study_uid=first.instance.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        modality=first.instance.modality,
        dtype=str(volume.array.dtype),
        shape=volume.shape,
        spacing_mm=tuple(volume.spacing_mm.tolist()),
        affine_lps=tuple(map(tuple, (volume.affine_lps + 0.0).tolist())),  # + 0.0: no "-0.0"
        label=stack.label,
        slices=tuple(
            Slice(frame.instance.file, frame.index + 1, frame.instance.sop_instance_uid) for frame in stack.frames
        ),
    )


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"
