"""Accuracy of the methods and of their peers, run by protocol and rendered from one JSON per run."""
