"""A guard against learning defects: a decision that would pass more than the one before needs a person's word."""

import dataclasses
import getpass
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from snl_runtime.errors import CalibrationRefusedError, DataError
from snl_runtime.images.files import pixel_sha256, read_image
from snl_runtime.images.listing import Listing, list_images
from snl_runtime.model.manifest import Decision, DecisionChange, Manifest
from snl_runtime.types import Image

from .options import CalibrationOptions
from .sample import ProductSample, listed

Passes = Callable[[Image, Path], bool]
"""Whether a frame passes under the new decision."""


def find_must_reject(folder: Path | None, product: str, on_listed: Callable[[Listing], None] = lambda _: None) -> list[Path]:
    """Return the images that must not pass: those of ``folder/<product>`` if there is such a folder, else of ``folder`` itself; none without one.

    Raises:
        DataError: If there is no folder or no image in it, or one cannot be taken.
    """
    if folder is None:
        return []
    own = folder / product if (folder / product).is_dir() else folder
    if not own.is_dir():
        raise DataError(f"{folder} is not a folder; --must-reject needs a folder of images that must not pass")
    listing = list_images(own)
    on_listed(listing)
    paths = list(listing.require_all().taken)
    if not paths:
        raise DataError(f"{own} holds no image; --must-reject needs images that must not pass")
    return paths


def find_passing(paths: Sequence[Path], sample: ProductSample, passes: Passes) -> list[str]:
    """Return the names of the images that must not pass and do.

    Raises:
        CalibrationRefusedError: If one of them is among the good parts, pixel for pixel.
        DataError: If one cannot be read.
    """
    good = {part.sha256: part.name for part in sample.parts}
    passing = []
    for path in paths:
        image = read_image(path, sample.bit_depth)
        name = good.get(pixel_sha256(image))
        if name is not None:
            raise CalibrationRefusedError(f"{path} must not pass, and it is the good part {name}, pixel for pixel; remove one of them")
        if passes(image, path):
            passing.append(path.name)
    return passing


def decision_before(manifest: Manifest, sha256: str, product: str) -> Decision | None:
    """Return what a new decision is compared with: the one that holds for the file of this hash, else the newest that was fitted on it.

    None holds for an engine where its model is judged by a newer decision that it does not inherit.
    """
    own = [decision for decision in manifest.decisions if (decision.model_sha256, decision.product) == (sha256, product)]
    return manifest.decisions_for(sha256).get(product, own[-1] if own else None)


def require_not_lenient(decision: Decision, current: Decision | None, passing: Sequence[str], options: CalibrationOptions) -> Decision:
    """Return the decision with who wrote it, if it is no more lenient than the one before or a person accepts that it is.

    Args:
        decision: The new one.
        current: As :func:`decision_before` gives it; None for the first one of a file, and then only ``passing`` counts.
        passing: Images that must not pass and do.
        options: Margin and acceptance.

    Raises:
        CalibrationRefusedError: With every objection, and what to do.
    """
    objections = _objections(decision, current, options.max_loosening)
    if passing:
        objections.append(f"{len(passing)} images that must not pass would pass: {listed(list(passing), shown=20)}")
    if objections and options.accept_lenient is None:
        raise CalibrationRefusedError(
            f"{'; '.join(objections)}; look for defects among the good parts, or accept it with a reason: --accept-lenient 'REASON'"
        )
    change = DecisionChange(
        written_at=datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        written_by=options.written_by or default_author(),
        accepted_lenient=options.accept_lenient if objections else None,
        accepted_passes=list(passing),
    )
    return dataclasses.replace(decision, change=change)


def default_author() -> str:
    """Return the name of the account, ``unknown`` where there is none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user id; on Windows no pwd module
        return "unknown"


def _objections(decision: Decision, current: Decision | None, max_loosening: float) -> list[str]:
    if current is None:
        return []
    differences = {
        "another part of the frame": decision.roi_xyxy != current.roi_xyxy,
        "frames in other views (--tile, --overlap, --with-whole-frame)": decision.tiles != current.tiles,
        "scores on another scale (--fixed-pose)": (decision.normalization is None) is not (current.normalization is None),
    }
    if any(differences.values()):
        what = next(name for name, differs in differences.items() if differs)
        return [f"the decision of {current.fitted_at} judges {what}, so the new threshold cannot be compared with it"]
    return [*_objections_to_mask(decision, current), *_objections_to_threshold(decision, current, max_loosening)]


def _objections_to_mask(decision: Decision, current: Decision) -> list[str]:
    new, old = decision.ignore_mask, current.ignore_mask
    if new is None or (old is not None and old.sha256 == new.sha256):
        return []
    before = "judges all of it" if old is None else f"has another mask, of {100 * old.ignored_share:.3g} %"
    return [f"the ignore mask hides {100 * new.ignored_share:.3g} % of the inspected part, and the decision of {current.fitted_at} {before}"]


def _objections_to_threshold(decision: Decision, current: Decision, max_loosening: float) -> list[str]:
    limit = current.pass_threshold * (1 + max_loosening)
    if decision.pass_threshold <= limit:
        return []
    change = decision.pass_threshold / current.pass_threshold - 1
    return [
        f"the pass threshold would rise by {100 * change:.3g} %, from {current.pass_threshold:.6g} to {decision.pass_threshold:.6g}, "
        f"more than the {100 * max_loosening:.3g} % of --max-loosening"
    ]
