"""A station: cameras, triggers, one answer each within its deadline, and what the line is told."""
