"""What came of runs, for people: one page about a run, and runs side by side."""
