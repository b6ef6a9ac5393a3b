"""A file of JSON lines outlives kills and full disks."""

import resource

import pytest

from pastry.registry.lines import JsonLines


def test_half_a_line_is_cut_off_and_appending_goes_on(tmp_path):
    file = JsonLines(tmp_path / "lines")
    for value in ({"a": 1}, [2], "drei\n"):
        file.append(value)
    whole = (tmp_path / "lines").read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        cut = JsonLines(tmp_path / "cut")
        found = cut.read()
        assert found == [{"a": 1}, [2], "drei\n"][: whole[:length].count(b"\n")]
        cut.append("more")
        assert JsonLines(tmp_path / "cut").read() == [*found, "more"]
    file.keep(1)
    assert file.read() == [{"a": 1}]


def test_a_full_disk_leaves_the_lines_that_were_there(tmp_path):
    file = JsonLines(tmp_path / "lines")
    file.append("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # a write beyond it is cut short, as on a full disk
    try:
        with pytest.raises(OSError):
            file.append("x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append("second")
    assert file.read() == ["first", "second"]
