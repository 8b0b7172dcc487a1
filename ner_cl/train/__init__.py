"""Training: one step (`Learner`), a new step on an existing model (`learn`), a whole stream (`run_stream`)."""
