"""The HTML page that a run leaves behind, and the figures on it."""
