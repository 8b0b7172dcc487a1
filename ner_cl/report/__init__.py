"""Results for people to read: a page about one run, and comparisons of runs."""
