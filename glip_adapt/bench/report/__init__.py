"""Tables, statistics, figures and pages from records."""
