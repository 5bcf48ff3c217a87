"""DICOM reader: a folder of DICOM files goes in, one volume for each series comes out. Not for diagnosis.

`study` is the whole of it as a function, `report` what it leaves behind; reading DICOM itself is in `imaging`.
"""
