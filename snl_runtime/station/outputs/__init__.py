"""What tells the line and the plant: servers that a PLC reads, and consumers of the record."""
