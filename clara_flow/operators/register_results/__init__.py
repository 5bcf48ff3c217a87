"""Register results: hands the files of its inputs to an agent that delivers them, such as the DICOM export."""
