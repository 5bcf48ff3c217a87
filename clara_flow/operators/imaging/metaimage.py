"""MetaImage files (.mhd + .raw, .mha), the volume format of Clara's operators, as ITK reads and writes them.

A header of `Key = Value` lines, axes named x (column), y (row), z (slice), coordinates LPS. `TransformMatrix` lists the
unit vector of x, then of y, then of z; `Offset` is the centre of the first voxel.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from clara_flow.operators.imaging.geometry import affine_lps
from clara_flow.operators.imaging.volume import Volume

_ELEMENT_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # MetaIO's long is 4 bytes in files on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NAMES = {code: name for name, code in reversed(_ELEMENT_TYPES.items())}
_HEADER_LIMIT_BYTES = 1 << 20


class VolumeFileError(ValueError):
    """A volume file is broken, or holds what this program does not read. Names the file, never a patient."""


def write_metaimage(path: Path, volume: Volume) -> None:
    """Write `<name>.mhd` and `<name>.raw` beside it, or all in one `.mha`; uncompressed, little-endian.

    The same volume gives the same bytes. Raises VolumeFileError for dtypes that MetaImage has not (bool becomes
    uint8) and for sheared grids, which it cannot describe.
    """
    array = volume.array.view(np.uint8) if volume.array.dtype == bool else volume.array
    element = _NAMES.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if element is None:
        raise VolumeFileError(f"{path.name}: MetaImage has no type for {array.dtype}; convert the array first")
    if volume.is_sheared:
        raise VolumeFileError(f"{path.name}: MetaImage cannot describe a sheared grid; resample it first")
    one_file = path.suffix.lower() == ".mha"
    direction_xyz = volume.direction[:, ::-1]
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(direction_xyz.T.ravel()),
        "Offset": _numbers(volume.origin),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": volume.axis_codes[::-1].translate(str.maketrans("LRPASI", "RLAPIS")),
        "ElementSpacing": _numbers(volume.spacing_mm[::-1]),
        "DimSize": " ".join(str(size) for size in reversed(volume.shape)),
        "ElementType": element,
        "ElementDataFile": "LOCAL" if one_file else path.with_suffix(".raw").name,
    }
    text = "".join(f"{key} = {value}\n" for key, value in header.items()).encode()
    with (path if one_file else path.with_suffix(".raw")).open("wb") as stream:
        if one_file:
            stream.write(text)
        little = array.dtype.newbyteorder("<")
        for plane in array:  # slice by slice: no second copy of a large volume
            stream.write(np.ascontiguousarray(plane, little).data)
    if not one_file:
        path.write_bytes(text)


def read_metaimage(path: Path) -> Volume:
    """Read `.mhd` (with its .raw or .zraw) or `.mha`, 2D (one slice) or 3D, one channel, binary.

    The array keeps the file's dtype in native byte order. Raises VolumeFileError where the header is not MetaImage's,
    data are missing, short or of another kind (several channels, text, a list of files).
    """
    header, header_bytes = _read_header(path)
    try:
        dimensions = int(header["NDims"])
        size = [int(value) for value in header["DimSize"].split()]
        element, data_file = header["ElementType"], header["ElementDataFile"]
    except (KeyError, ValueError) as problem:
        raise VolumeFileError(f"{path.name}: the MetaImage header lacks or garbles a field: {problem}") from None
    if dimensions not in (2, 3) or len(size) != dimensions or min(size) < 1:
        raise VolumeFileError(f"{path.name}: a MetaImage of {dimensions} axes and size {size} is not a volume")
    if element not in _ELEMENT_TYPES or int(header.get("ElementNumberOfChannels", "1")) != 1:
        raise VolumeFileError(f"{path.name}: elements of type {element} with several channels or of no number type")
    if header.get("BinaryData", "True").lower() != "true" or data_file.split()[0] == "LIST" or "%" in data_file:
        raise VolumeFileError(f"{path.name}: text data and lists of files are not read; write one binary file")
    big = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    dtype = np.dtype(_ELEMENT_TYPES[element]).newbyteorder(">" if big else "<")
    array = _read_data(path, header, header_bytes, dtype, int(np.prod(size))).reshape(size[::-1])
    return Volume(array.reshape((-1, *array.shape[-2:])), _affine(path, header, dimensions))


def _numbers(values: np.ndarray) -> str:
    return " ".join(np.format_float_positional(value + 0.0, trim="-") for value in values)  # + 0.0: no "-0"


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields, and the length of the header in bytes. `ElementDataFile` is by rule its last line."""
    with path.open("rb") as stream:
        block = stream.read(_HEADER_LIMIT_BYTES)
    header: dict[str, str] = {}
    start = 0
    while (end := block.find(b"\n", start)) >= 0 or start < len(block):
        end = len(block) if end < 0 else end
        key, equals, value = block[start:end].partition(b"=")
        if not equals and key.strip():
            break
        start = end + 1
        header[key.strip().decode("latin-1")] = value.strip().decode("utf-8", "replace")
        if key.strip() == b"ElementDataFile":
            return header, start
    raise VolumeFileError(f"{path.name}: not a MetaImage header (no line `ElementDataFile = ...`)")


def _read_data(path: Path, header: dict[str, str], header_bytes: int, dtype: np.dtype, count: int) -> np.ndarray:
    local = header["ElementDataFile"].upper() == "LOCAL"
    source = path if local else path.parent / header["ElementDataFile"]
    if not source.is_file():
        raise VolumeFileError(f"{path.name}: its data file {source.name} is missing; keep the two files together")
    needed = count * dtype.itemsize
    if header.get("CompressedData", "False").lower() == "true":
        packed = source.read_bytes()[header_bytes if local else 0 :]
        try:
            unpacked = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(packed, needed)  # zlib or gzip frame
        except zlib.error as problem:
            raise VolumeFileError(f"{source.name}: its compressed data are broken: {problem}") from None
        array = np.frombuffer(unpacked, dtype, len(unpacked) // dtype.itemsize)
    else:
        skip = int(header.get("HeaderSize", "0"))
        skip = source.stat().st_size - needed if skip < 0 else skip
        array = np.fromfile(source, dtype, count, offset=max(header_bytes if local else skip, 0))
    if array.size != count:
        raise VolumeFileError(f"{source.name}: holds {array.size} of {count} elements; the file was cut short")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _affine(path: Path, header: dict[str, str], dimensions: int) -> np.ndarray:
    """Fields have older names that files in the field still use (MetaIO's documentation, "spatial objects")."""

    def field(names: tuple[str, ...], default: np.ndarray) -> np.ndarray:
        text = next((header[name] for name in names if name in header), None)
        values = default if text is None else np.array([float(value) for value in text.split()])
        if values.size != default.size:
            raise VolumeFileError(f"{path.name}: {names[0]} has {values.size} numbers instead of {default.size}")
        return values.reshape(default.shape)

    vectors, spacing, offset = np.eye(3), np.ones(3), np.zeros(3)
    known = slice(0, dimensions)
    vectors[known, known] = field(("TransformMatrix", "Rotation", "Orientation"), np.eye(dimensions))
    spacing[known] = field(("ElementSpacing", "ElementSize"), np.ones(dimensions))
    offset[known] = field(("Offset", "Origin", "Position"), np.zeros(dimensions))
    return affine_lps(offset, vectors.T[:, ::-1], spacing[::-1])
