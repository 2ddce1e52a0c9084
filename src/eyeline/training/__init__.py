"""From an experiment to a trained student: the loop, its state, and what it runs on."""
