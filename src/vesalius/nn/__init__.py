"""Building blocks that two or more systems use: trunks, masks, decoders, losses, schedules."""
