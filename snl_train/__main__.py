"""``python -m snl_train``: the command ``snl-train`` for launchers that start modules, as ``torchrun -m snl_train`` does."""

import sys

from snl_train.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
