"""The commands ``snl-train`` and ``snl-eval``."""
