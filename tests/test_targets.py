"""Each test is of one target, and the night is a list that goes on from what failed."""

import subprocess

import pytest

from tests import nightly
from tests.targets import problems_of, runs_in, target_of, with_targets

MAKEFILE = """
test:
	pytest --target test
kafka:
	pytest --target kafka tests/kafka tests/more
"""


@pytest.mark.parametrize(
    ("file", "marks", "target"),
    [
        ("tests/core/test_a.py", (), "test"),
        ("tests/core/test_a.py", ("timed",), "test"),
        ("tests/core/test_a.py", ("journey",), "journeys"),
        ("tests/core/test_a.py", ("journey", "nightly"), "variants"),
        ("tests/core/test_a.py", ("nightly", "timed"), "promises"),
        ("tests/loop/test_a.py", (), "faults"),
        ("tests/faults/stores/test_a.py", ("nightly",), "loops"),
        ("tests/kafka/test_a.py", ("kafka", "nightly"), "kafka"),
        ("tests/containers/test_compose.py", ("containers",), "containers"),
        ("tests/containers/test_serving_image.py", ("containers",), "image"),
    ],
)
def test_file_and_marks_say_the_target_of_a_test(file, marks, target):
    assert target_of(file, marks) == target
    assert runs_in(target, file, marks)
    assert runs_in("promises", file, marks) == ("timed" in marks)


def test_a_test_that_nobody_would_run_is_named():
    targets = {
        "tests/core/test_a.py": {"test"},
        "tests/kafka/test_b.py": {"kafka"},
        "tests/core/test_c.py": {"kafka", "loops"},
    }
    assert problems_of(targets, MAKEFILE, ["test", "kafka"]) == [
        "Makefile: no recipe has --target loops",
        "make loops: neither .ci/run nor make nightly calls it",
        "tests/core/test_c.py: is of make kafka, which looks in tests/kafka tests/more",
    ]
    del targets["tests/core/test_c.py"]
    assert problems_of(targets, MAKEFILE, ["test", "kafka"]) == []


def test_the_table_of_promises_names_the_targets_of_its_tests():
    row = "| It holds | [`a.py`](../tests/a.py), [`b.py`](../tests/b.py)"
    targets = {"tests/a.py": {"variants", "test"}, "tests/b.py": {"journeys"}}
    expected = f"{row} | `test`, `journeys`, `variants` |"
    for end in (" |", " | `faults` |"):
        assert with_targets(f"{row}{end}\n", targets) == f"{expected}\n"


@pytest.fixture
def night(tmp_path, monkeypatch):
    """A clone with one commit, whose parts of the night count how often they run."""
    recipes = [f"{part}:\n\t@echo x >> runs-{part}\n" for part in nightly.PARTS]
    failing = "\t@test -e mended && echo '== 3 passed in 1.0s =='\n"
    recipes[1] += failing
    (tmp_path / "Makefile").write_text("".join(recipes))
    page = tmp_path / "tests.md"
    page.write_text("before\n<!-- nightly -->\n<!-- end of nightly -->\nafter\n")
    commands = (
        "git init -q . && printf 'runs-*\\nmended\\n.nightly/\\n' > .gitignore && git add . "
        "&& git -c user.name=a -c user.email=a@b commit -qm first"
    )
    subprocess.run(commands, cwd=tmp_path, shell=True, check=True)
    monkeypatch.setattr(nightly, "CLONE", tmp_path)
    monkeypatch.setattr(nightly, "PAGE", page)
    return tmp_path


def runs(folder):
    """How often each part has run."""
    counts = {}
    for part in nightly.PARTS:
        file = folder / f"runs-{part}"
        counts[part] = len(file.read_text()) // 2 if file.exists() else 0
    return counts


def test_a_night_goes_on_from_the_part_that_failed_and_records_what_ended(night):
    first, second, *others = nightly.PARTS
    assert nightly.main() == 1
    (night / "mended").touch()
    assert nightly.main() == 0
    assert runs(night) == {first: 1, second: 2, **dict.fromkeys(others, 1)}
    assert nightly.main() == 0
    assert nightly.main(first) == 0
    assert runs(night)[first] == 2
    assert nightly.main("--record") == 0
    page = (night / "tests.md").read_text()
    assert page.startswith("before\n<!-- nightly -->\n| part |")
    assert f"| `make {second}` |" in page
    assert "| 3 passed |" in page
    assert page.endswith("<!-- end of nightly -->\nafter\n")


def test_results_of_uncommitted_changes_are_not_recorded(night):
    (night / "Makefile").write_text((night / "Makefile").read_text() + "\n")
    (night / "mended").touch()
    assert nightly.main(nightly.PARTS[0]) == 0
    with pytest.raises(SystemExit, match="uncommitted changes"):
        nightly.main("--record")
    with pytest.raises(SystemExit, match="the parts are variants loops"):
        nightly.main("everything")
