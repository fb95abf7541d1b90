"""One training loop on Lightning, the run folder that it leaves, and the verbs that run it."""
