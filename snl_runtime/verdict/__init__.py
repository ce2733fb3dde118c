"""Score and evidence to verdict."""
