"""Learning: one step (`Learner`), one new step on a model (`learn`), a whole stream (`run_stream`)."""
