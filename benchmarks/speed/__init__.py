"""How fast the SDK is, as ratios to the limits of the machine."""
