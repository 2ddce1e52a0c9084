"""The folder of a run: what was asked, what happened, what came out."""
