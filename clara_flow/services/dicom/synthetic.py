"""A small image that is nobody's, to try a destination with."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom.dsutils import encode

TRANSFER_SYNTAXES = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
NAMESPACE = uuid.UUID("6f0a6a53-5f0b-4f67-9f0e-0b6f0d5a7c11")  # ours, for ever
SIDE = 16  # pixels
DATE = datetime(2020, 1, 1)  # noqa: DTZ001  of an image of nothing


def synthetic_instance(transfer_syntax: str) -> FileDataset:
    """A Secondary Capture image (PS3.3 A.8.1) of 16 x 16 pixels that says what it is.

    It has always the same UIDs, so that a destination that is tried every day holds it once.
    """
    instance = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=bytes(128))
    instance.SOPClassUID = SecondaryCaptureImageStorage
    instance.SOPInstanceUID = _uid("instance")
    instance.StudyInstanceUID, instance.SeriesInstanceUID = _uid("study"), _uid("series")
    instance.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.SpecificCharacterSet = "ISO_IR 100"
    instance.PatientName, instance.PatientID = "CLARA-FLOW^TEST", "CLARA-FLOW-TEST"
    instance.PatientBirthDate = instance.PatientSex = ""
    instance.StudyDate, instance.StudyTime = f"{DATE:%Y%m%d}", f"{DATE:%H%M%S}"
    instance.StudyID = instance.AccessionNumber = instance.ReferringPhysicianName = ""
    instance.StudyDescription = "clara-flow: test of a destination, no patient"
    instance.Modality, instance.ConversionType = "OT", "SYN"
    instance.SeriesNumber, instance.InstanceNumber = 1, 1
    instance.PatientOrientation = instance.Laterality = ""
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.Rows = instance.Columns = SIDE
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    instance.PixelData = bytes(16 * (row ^ column) for row in range(SIDE) for column in range(SIDE))
    instance["PixelData"].VR = "OB"
    return instance


def encoded(instance: FileDataset) -> bytes:
    """Its data set, as its transfer syntax has it."""
    syntax = instance.file_meta.TransferSyntaxUID
    return encode(instance, syntax.is_implicit_VR, syntax.is_little_endian) or b""


def _uid(what: str) -> str:
    return f"2.25.{uuid.uuid5(NAMESPACE, what).int}"
