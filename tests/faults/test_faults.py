import ast

import pytest

from tests.faults.plant import ROOT, Fault, planted, read_faults

FAULTS = read_faults()


def test_faults_have_names_of_their_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_faults_line_stands_once_in_its_file_and_its_tests_are_there(fault):
    text = (ROOT / fault.file).read_text()
    assert ast.dump(ast.parse(planted(text, fault))) != ast.dump(ast.parse(text))
    assert all((ROOT / path).exists() for path in fault.tests)


def test_a_line_that_is_gone_or_stands_twice_is_named():
    fault = Fault("halved", "sign", "a.py", "x = 1", "x = -1", ())
    for text in ("y = 1\n", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match=r"^halved: a\.py holds the line \d times, expected"):
            planted(text, fault)
