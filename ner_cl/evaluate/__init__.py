"""What a tagger found, against gold: counts, F1, forgetting, mistakes, and whether a difference may be chance."""
