"""The stages of a run, from briefs to a measured student, and the runs that are made of runs."""
