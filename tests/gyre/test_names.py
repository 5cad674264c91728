"""The names that the files of a team import."""

import subprocess
import sys
from importlib import import_module

import pytest

import gyre
from core.user_code import FORMER_MODULES, in_one_line


def test_each_name_is_that_of_its_module():
    assert len(gyre.__all__) > len(gyre.MODULES)
    for name in gyre.__all__:
        module = gyre.MODULES.get(name, gyre.NOTEBOOK)
        assert getattr(gyre, name) is vars(sys.modules[module])[name]


def test_another_name_is_answered_with_those_that_exist():
    with pytest.raises(ImportError):
        from gyre import Windowz  # noqa: F401, PLC0415
    with pytest.raises(AttributeError, match="'Windowz': it has DECIMAL, PROJECT"):
        _ = gyre.Windowz


@pytest.mark.parametrize("module", FORMER_MODULES)
def test_an_import_of_a_former_place_is_answered_with_the_import_of_today(module):
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(module)
    names = FORMER_MODULES[module]
    assert in_one_line(caught.value).endswith(f"'{module}': from gyre import {names}")
    assert set(names.split(", ")) <= set(gyre.__all__)


@pytest.mark.journey
def test_a_definition_imports_no_training_and_no_monitoring():
    code = (
        "import sys; from gyre import Dataset, Window; "
        "print({'sklearn', 'training', 'monitoring'} & sys.modules.keys())"
    )
    answer = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert answer.strip() == "set()"
