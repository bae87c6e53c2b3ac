import re

from tests.jobs.runs import ROOT

QUICK = re.search(r"^QUICK := \\\n((?:  .*\\\n)*  .*\n)", (ROOT / "Makefile").read_text(), re.M)


def test_quick_names_tests_of_every_room_and_all_of_them_are_there():
    named = [word.strip("'") for word in QUICK[1].replace("\\", " ").split()]
    for name in named:
        path, *tests = name.split("::")
        assert (ROOT / path).exists(), name
        for test in tests:
            assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(), name
    rooms = {path.parent.name for path in (ROOT / "uvit_jax").glob("*/__init__.py")}
    assert rooms <= {name.split("/")[1] for name in named}
