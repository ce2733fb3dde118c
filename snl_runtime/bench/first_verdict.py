"""The process that :mod:`snl_runtime.bench.start` times: opens a model, judges one frame, says on standard output what that took.

Imports what a program that embeds the detector imports, and nothing more before the verdict.
"""

import json
import math
import sys
import time
from pathlib import Path


def main() -> None:
    """Read what is asked from the first argument, JSON, and write one line of JSON as soon as the verdict is there."""
    import numpy as np

    from snl_runtime import SnlDetector

    asked = json.loads(sys.argv[1])
    key_file = asked["public_key_file"]
    public_key = None if key_file is None else Path(key_file).read_bytes()
    frame = np.load(asked["frame"])
    with SnlDetector(asked["model"], public_key=public_key, **asked["options"]) as detector:
        result = detector.detect(frame, color="rgb", product=asked["product"])
        processor_s = time.process_time()
        from snl_runtime.bench.memory import process_memory

        memory = process_memory()
        said = {
            "reason": None if math.isfinite(result.score) else result.reason,
            "processor_s": processor_s,
            "memory": None if memory is None else [memory.resident_bytes, memory.peak_bytes],
        }
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
