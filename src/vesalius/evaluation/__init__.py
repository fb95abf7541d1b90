"""Scores of what was trained: protocols, intervals, the result file, predictions, parity with the authors' code."""
