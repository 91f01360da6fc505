"""How much of full fine-tuning's gain prompt tuning recovers at 10 shots, with and without deep fusion.

    glip-adapt bench benchmarks/plans/fusion_matters.toml --out runs/fusion_matters
    python benchmarks/fusion_matters.py runs/fusion_matters --out benchmarks/results/fusion_matters

writes the figure (PNG and SVG) and prints the table; both hold bootstrap intervals over datasets and seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glip_adapt.bench.records import read_records
from glip_adapt.bench.report.comparison import difference_of_shares, draw_recovery, format_recovery, share_of_gain

TRUNKS = ("glip-nano", "glip-nano-a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of the plan's records")
    parser.add_argument("--out", type=Path, required=True, help="name of the figure, without a suffix")
    arguments = parser.parse_args()
    records = read_records(arguments.results)
    recoveries = [share_of_gain(records, trunk, "prompt") for trunk in TRUNKS]
    figure = draw_recovery(recoveries, note="Measured on synthetic data.")
    for suffix in ("png", "svg"):
        figure.savefig(arguments.out.with_suffix(f".{suffix}"), dpi=160)
    difference = difference_of_shares(records, *TRUNKS, "prompt")
    print(format_recovery(recoveries, difference, note="The data are synthetic."))


if __name__ == "__main__":
    main()
