import re
from dataclasses import replace

import pandas as pd
import pytest
from made_up import RECORDS, record

from glip_adapt.bench.report.document import build_document, pivot
from glip_adapt.bench.report.markup import Section, format_latex, format_markdown
from glip_adapt.bench.report.tables import load_table, summarize_datasets, summarize_mean


@pytest.fixture
def table():
    return load_table(RECORDS)


def titles(table):
    return [section.title for section in build_document(table)]


def test_pivot_per_dataset_by_hand(table):
    wide = pivot(summarize_datasets(table))
    assert list(wide.columns) == [0, 1, 5, "all"]
    assert wide.loc[("glip-t", "a", "prompt")].tolist() == ["10.0", "25.0 ± 7.1", "30.0 ± 0.0", "–"]
    assert wide.loc[("glip-t", "b", "prompt")].tolist() == ["20.0", "50.0 ± 14.1", "60.0 ± 14.1", "–"]
    assert wide.loc[("glip-t", "a", "full")].tolist() == ["10.0", "12.0 ± 1.4", "52.0 ± 2.8", "80.0"]
    assert wide.loc[("glip-t", "b", "full")].tolist() == ["20.0", "22.0 ± 1.4", "70.0 (1 of 2 seeds)", "–"]
    assert len(wide) == 4


def test_pivot_of_means_says_how_many_are_missing(table):
    wide = pivot(summarize_mean(table))
    assert wide.loc[("glip-t", "prompt")].tolist() == ["15.0", "37.5 ± 10.6", "45.0 ± 7.1", "–"]
    assert wide.loc[("glip-t", "full")].tolist() == ["15.0", "17.0 ± 1.4", "– (1 of 4 missing)", "– (1 of 2 missing)"]


def test_undefined_ap_counts_as_missing():
    table = load_table([record("a", "prompt", 1, 3, None), record("b", "prompt", 1, 3, 0.5)])
    assert pivot(summarize_mean(table)).loc[("glip-t", "prompt"), 1] == "– (1 of 2 missing)"


def test_trunks_are_averaged_apart_over_their_own_datasets():
    records = [
        record("a", "full", 1, 3, 0.2),
        record("a", "full", 1, 3, 0.4, "nano"),
        record("b", "full", 1, 3, 0.6, "nano"),
    ]
    wide = pivot(summarize_mean(load_table(records)))
    assert wide[1].to_dict() == {("glip-t", "full"): "20.0", ("nano", "full"): "50.0"}


def test_markdown_holds_note_tables_missing_count_and_failed_runs(table):
    text = format_markdown(build_document(table, note="The trunk is untrained."))
    assert text.startswith("# Benchmark report\n\nThe trunk is untrained.\n")
    assert "19 runs, 1 failed. Device: cpu. Code: abc." in text
    assert "| glip-t | a | prompt | 10.0 | 25.0 ± 7.1 | 30.0 ± 0.0 | – |" in text
    assert "## Mean over 2 datasets, glip-t\n\na, b.\n" in text
    assert "| glip-t | full | 15.0 | 17.0 ± 1.4 | – (1 of 4 missing) | – (1 of 2 missing) |" in text
    # full: b at 5 seed 30, b at all; prompt: a and b at all
    assert "4 expected figures missing among the datasets, methods, shots and seeds that were started;" in text
    assert "## 1 failed run\n" in text
    assert "| glip-t--b--full--5--30 | FloatingPointError: loss is nan \\| batch 7 |" in text
    assert "Traceback" not in text


def test_markdown_holds_intervals_tests_and_costs(table):
    text = format_markdown(build_document(table))
    assert re.search(r"\| glip-t \| prompt \| 15\.0 \(10\.0 to 20\.0\) \| 37\.5 \(\d+\.\d to \d+\.\d\) \|", text)
    assert re.search(r"\| glip-t \| 1 \| prompt \| 37\.5 \(.*\) \| full \| 20\.5 \(\d+\.\d to \d+\.\d\) \|", text)
    assert "| glip-t | 1 | prompt | full | −20.5 | 0.1250 | 0.5000 | 4 | 2 | 0 |" in text
    assert "| glip-t | 5 | prompt | full | +21.3 | 0.2500 | 0.5000 | 3 | 2 | 1 |" in text
    assert "| glip-t | prompt | 5 | 45.0 | 768 | 3.1 kB | – | 1.5 |" in text
    assert "| glip-t | full | 5 | – | – | – | – | – |" in text
    assert "Features that a worker keeps from earlier runs are not computed again and count into its memory." in text


def test_complete_report_says_so_and_holds_nothing_that_does_not_apply():
    text = format_markdown(build_document(load_table(RECORDS[:10])))
    assert "No figure is missing among the datasets, methods, shots and seeds that were started." in text
    assert "failed run" not in text
    assert "retention" not in text.lower()
    assert "published" not in text.lower()


def test_a_single_run_has_neither_interval_nor_pair():
    assert titles(load_table([record("a", "full", 1, 3, 0.2)])) == [
        "Benchmark report", "AP per dataset", "Mean over 1 dataset, glip-t", "Cost", "Completeness",
    ]  # fmt: skip


def test_published_means_stand_beside_ours_over_the_same_sets():
    records = [record("Raccoon", "zero_shot", 0, 3, 0.3), record("Raccoon", "full", 5, 3, 0.5)]
    (section,) = (one for one in build_document(load_table(records)) if "published" in one.title)
    rows = {(row.method, row.shots): row for row in section.table.itertuples()}
    assert set(rows) == {("zero_shot", "0"), ("full", "5")}
    full = rows["full", "5"]
    assert full.here == "50.0"
    assert float(full.difference.replace("−", "-")) == pytest.approx(50 - float(full.published))


def test_retention_says_how_many_scores_it_rests_on():
    records = [record(name, "zero_shot", 0, 3, 0.4) for name in ("a", "b")]
    records += [record(name, "full", 5, 3, 0.5, retention={other: 0.3}) for name, other in ("ab", "ba")]
    text = format_markdown(build_document(load_table(records)))
    assert "## Zero-shot retention" in text
    assert "| glip-t | full | 5 | 40.0 | 30.0 | −10.0 | 2 | 2 |" in text


def test_latex_escapes_every_character_that_it_reserves():
    reserved = r"a_b & 5 % $ # { } ~ ^ \ < > | ± – −"
    section = Section("T_1", "50 % of", pd.DataFrame({"method": [reserved], "0": ["1.0"]}))
    text = format_latex([section])
    assert r"\caption{T\_1. 50 \% of} \\" in text
    assert (
        r"a\_b \& 5 \% \$ \# \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"$<$ $>$ \textbar{} $\pm$ -- $-$ & 1.0 \\"
    ) in text
    assert r"\begin{longtable}{lr}" in text
    assert r"{[}5cm] \\" in format_latex([Section("T", "", pd.DataFrame({"method": ["[5cm]"]}))])


def test_latex_is_balanced_and_has_as_many_cells_as_columns(table):
    text = format_latex(build_document(table))
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert environments == [(end, "longtable") for _ in range(7) for end in ("begin", "end")]
    for columns, body in re.findall(r"\\begin\{longtable\}\{(\w+)\}(.*?)\\end", text, flags=re.DOTALL):
        body = re.sub(r"\\caption.*", "", body)
        for row in re.findall(r"^(.*) \\\\$", body, flags=re.MULTILINE):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [14, 14, 7]  # heads twice


def test_published_values_on_suites_stand_beside_ours_with_their_source():
    runs = [record("lvis_minival", "zero_shot", 0, 3, 0.2), record("val", "zero_shot", 0, 3, 0.2)]
    runs[0] = replace(runs[0], metrics=replace(runs[0].metrics, values={"ap": 0.2, "ap_rare": 0.25, "ap_common": None}))
    (section,) = (one for one in build_document(load_table(runs)) if "suites" in one.title)
    assert "not measured here" in section.text
    rows = [(row.value, row.here, row.published, row.difference) for row in section.table.itertuples()]
    assert rows == [("ap", "20.0", "25.9", "−5.9"), ("ap_rare", "25.0", "20.1", "+4.9")]
    assert section.table["source"].tolist() == ["arXiv 2112.03857; best checkpoint"] * 2
