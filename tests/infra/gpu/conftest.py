"""Fixtures of the inventory's tests."""

from nvml_fixture import fake_nvml, fake_nvml_here, nvml_library  # noqa: F401
