"""Names of folders that say whether the parts in them are good."""

import re
from collections.abc import Iterable
from pathlib import PurePath

_GOOD = frozenset("good ok io i_o normal pass passed gut nondefective non_defective no_defect no_defects defect_free".split())
_NOT_GOOD = frozenset(
    "bad ng nok nio n_i_o anomaly anomalies anomalous abnormal defect defects defective fail failed reject rejects rejected scrap schlecht "
    "train test val validation ground_truth groundtruth mask masks".split()
)


def is_good_name(name: str) -> bool:
    """Return whether a folder of this name holds good parts; case, digits and what separates words do not matter.

    Example:
        >>> [is_good_name(name) for name in ("OK", "Good 2", "non-defective", "not good", "scratch")]
        [True, True, True, False, False]
    """
    return _plain(name) in _GOOD


def is_split_name(name: str) -> bool:
    """Return whether a folder of this name is a part of a dataset (``train``, ``good``, ``bad``, ``ground_truth``) and no product."""
    return name.casefold() in (_GOOD | _NOT_GOOD) - {"mask", "masks"}


def is_ground_truth(path: PurePath) -> bool:
    """Return whether a file, by a path relative to what was listed, is a mask."""
    return any(_plain(part) in ("ground_truth", "groundtruth") for part in path.parts[:-1])


def find_not_good(paths: Iterable[PurePath]) -> list[str]:
    """Return the folders, of paths relative to a folder of good parts, whose names say that what lies in them is something else.

    Beside a folder that is called good, that is every folder that is not.
    """
    folders = {path.parent for path in paths if path.parent.parts}
    called_good = {folder for folder in folders if any(is_good_name(part) for part in folder.parts)}
    bad = {folder for folder in folders if any(_plain(part) in _NOT_GOOD for part in folder.parts)}
    return sorted(folder.as_posix() for folder in bad | (folders - called_good if called_good else set()))


def _plain(name: str) -> str:
    return re.sub(r"[\W\d_]+", "_", name.casefold()).strip("_")
