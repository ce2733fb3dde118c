"""The machine is described by what is installed and what the processor says."""

import importlib.metadata

from snl_runtime.bench.machine import installed_versions, processor


def test_versions_are_those_of_installed_packages_only():
    assert installed_versions(["numpy", "no-such-package-anywhere"]) == {"numpy": importlib.metadata.version("numpy")}


def test_processor_has_a_name():
    assert processor()
