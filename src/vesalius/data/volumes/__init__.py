"""Volumes on the way to a 3-D network and back: contract, cases, cache, dataset."""
