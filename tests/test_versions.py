"Versions: those that packages say of themselves, and none for what is not there."
from importlib import metadata

import numpy
import torch

from miniai.environment import version_of


def test_a_packages_version_is_what_it_says_itself():
    assert version_of('numpy') == numpy.__version__
    assert version_of('torch').split('+')[0] == torch.__version__.split('+')[0]


def test_a_package_that_is_not_installed_has_none(): assert version_of('no-such-package-anywhere') is None


def test_metadata_are_read_once(monkeypatch):
    first = version_of('numpy')
    monkeypatch.setattr(metadata.Distribution, 'from_name', lambda *_: 1/0)
    assert version_of('numpy') == first
