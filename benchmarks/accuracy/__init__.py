"""Accuracy of the methods and of baselines: run by protocol, kept as one CSV per protocol, rendered when the documents are built."""
