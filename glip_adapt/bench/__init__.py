"""The benchmark: plans, runs, records, reports. Empty, so that a worker loads no more than it needs."""
