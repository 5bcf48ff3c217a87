"""DICOM SEG Writer: masks become DICOM Segmentation objects (PS3.3 A.51) of the series they were made from."""
