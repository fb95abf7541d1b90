"""The authors' checkpoint files: read safely, mapped to our networks, and written with a card."""
