"""benchmarks/strong.py: means and differences of its tables, and where they are put."""

import re

import pytest

from benchmarks import strong


def numbers(text):
    return [float(number) for number in re.findall(r"[+-]?\d+\.\d", text)]


def test_the_difference_is_that_of_the_means_also_where_a_set_lacks_a_seed():
    one = {("A", 5, 3): 10.0, ("A", 5, 30): 20.0, ("B", 5, 3): 60.0}
    other = {("A", 5, 3): 8.0, ("A", 5, 30): 12.0, ("B", 5, 3): 50.0}
    cells = sorted(one)
    assert strong.mean(one, cells) == (15.0 + 60.0) / 2
    found = strong.difference(one, other, cells).value
    assert found == pytest.approx(strong.mean(one, cells) - strong.mean(other, cells))


def test_an_ablation_compares_the_same_cells_and_what_is_added_counts_the_other_way():
    whole = {("A", 5, 7): 50.0, ("A", 5, 70): 90.0}
    found = {"nothing": whole, "colours": {("A", 5, 7): 40.0}, "blends": {("A", 5, 7): 53.0}}
    _, _, colours, blends = strong.ablation_table(found).splitlines()
    assert numbers(colours)[:3] == [50.0, 40.0, 10.0]
    assert numbers(blends)[:3] == [53.0, 50.0, 3.0]


@pytest.mark.parametrize("text", ["no mark", "<!-- x -->\nthe rest", "<!-- /x -->\n<!-- x -->\nthe rest"])
def test_a_readme_without_both_marks_stays_as_it_is(text, tmp_path, monkeypatch):
    monkeypatch.setattr(strong, "HERE", tmp_path)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(SystemExit, match="has no place for the tables"):
        strong.put("x", "| table |")
    assert (tmp_path / "README.md").read_text() == text


def test_a_table_is_put_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(strong, "HERE", tmp_path)
    (tmp_path / "README.md").write_text("before <!-- x -->old<!-- /x --> after")
    strong.put("x", "new\n")
    assert (tmp_path / "README.md").read_text() == "before <!-- x -->\n\nnew\n\n<!-- /x --> after"
