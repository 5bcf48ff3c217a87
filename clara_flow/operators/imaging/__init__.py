"""What operators share about images: volumes, their geometry and files, DICOM series, the sample study."""

from clara_flow.operators.imaging.geometry import GeometryError
from clara_flow.operators.imaging.metaimage import VolumeFileError
from clara_flow.operators.imaging.volume import Volume
from clara_flow.operators.imaging.volume_files import find_volumes, read_volume, volume_suffix, write_volume

__all__ = ["GeometryError", "Volume", "VolumeFileError", "find_volumes", "read_volume", "volume_suffix", "write_volume"]
