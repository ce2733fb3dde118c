"""Which good parts are fitted on: found in folders or in the manifest's held-out list, independent, and never trained on."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from snl_runtime.errors import CalibrationRefusedError, ConfigError, DataError
from snl_runtime.images.files import check_range, pixel_sha256, read_frame, to_image
from snl_runtime.images.labels import find_not_good
from snl_runtime.images.listing import Listing, is_junk, list_images
from snl_runtime.images.preprocess import FrameFormat, stored_bits
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.model.manifest import Manifest
from snl_runtime.progress import ProgressReporter, no_progress

MANY_SIZES = 4
"""Sizes of one product above which they are no camera's settings but those of parts that were cut out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodPart:
    """One image of one good part.

    Attributes:
        name: Path relative to the folder that was given, with forward slashes.
        path: Where the file is.
        sha256: Hash of the decoded pixels; empty until :func:`read_parts` filled it.
        format: Size and bit depth of the file; None until then.
    """

    name: str
    path: Path
    sha256: str = ""
    format: FrameFormat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSample:
    """The good parts of one product.

    Attributes:
        product: Name under which the decision will be stored.
        parts: Sorted by name.
        warnings: What a person should know about the sample, one sentence each.
        is_held_out: Whether the parts come from the manifest's list, where nobody can take a file away.
        bit_depth: Bits that a value of every file uses; 8 until :func:`read_parts` has looked.
    """

    product: str
    parts: tuple[GoodPart, ...]
    warnings: list[str] = field(default_factory=list)
    is_held_out: bool = False
    bit_depth: int = 8

    @property
    def sha256(self) -> str:
        """Hash of the sample: sha256 over the sorted pixel hashes, one per line."""
        return hashlib.sha256("\n".join(sorted(part.sha256 for part in self.parts)).encode()).hexdigest()

    def frame_sizes(self, *, any_size: bool) -> FrameSizes:
        """Return the sizes of the files."""
        return FrameSizes(seen_hw=sorted({part.format.size_hw for part in self.parts if part.format is not None}), any_size=any_size)


def find_samples(
    good: Path, manifest: Manifest, product: str | None, *, held_out: bool, on_listed: Callable[[Listing], None] = lambda _: None
) -> list[ProductSample]:
    """Return one sample per product, hashes and formats not yet filled.

    ``good`` is a folder of images (one product), a folder of product folders, or with ``held_out`` the training data's root. Folders inside those,
    e.g. one per day, belong to them. ``on_listed`` is given what was found, unless with ``held_out``, where the manifest says what there is.

    Raises:
        ConfigError: If the product's name cannot be told from the folder, or there is no such product.
        DataError: If a folder is missing, holds no image, one that cannot be taken, or folders that say that parts are not good; or a held-out image
            is missing.
    """
    if not good.is_dir():
        raise DataError(f"{good} is not a folder; --good needs a folder of images or of product folders")
    samples = _from_held_out(good, manifest, product) if held_out else _from_folders(good, manifest, product, on_listed)
    for sample in samples:
        if sample.product not in manifest.classes:
            sample.warnings.append(f"product {sample.product!r} was not trained on (this model knows {listed(manifest.classes)})")
    return samples


def read_parts(sample: ProductSample, bit_depth: int | None, progress: ProgressReporter = no_progress) -> ProductSample:
    """Return the sample with format and hash of every image.

    Args:
        sample: The good parts.
        bit_depth: Bits that a value uses; None for 8 or 16, whichever the files have.
        progress: Told how many images are read.

    Raises:
        DataError: If a file cannot be read, is not of that bit depth, or uses a small part of 16 bits although none was declared.
        CalibrationRefusedError: If some files have 8 bits and others 16: a line sends one of them.
    """
    parts = []
    with progress(len(sample.parts), unit="images", label=f"{sample.product}: read") as steps:
        for part in sample.parts:
            parts.append(_read_part(part, bit_depth))
            steps.advance()
    first_with = {part.format.bit_depth: part.name for part in parts if part.format is not None}
    if len(first_with) > 1:
        named = " and ".join(f"{name} ({bits} bits)" for bits, name in sorted(first_with.items()))
        raise CalibrationRefusedError(f"the good images differ in bit depth, e.g. {named}; take all of them as the line's camera sends them")
    return replace(sample, parts=tuple(parts), bit_depth=next(iter(first_with), 8))


def _read_part(part: GoodPart, bit_depth: int | None) -> GoodPart:
    frame = read_frame(part.path)
    check_range(frame, part.path, bit_depth)
    image = to_image(frame, part.path, bit_depth)
    size_hw = (frame.shape[0], frame.shape[1])
    return replace(part, sha256=pixel_sha256(image), format=FrameFormat(size_hw=size_hw, bit_depth=bit_depth or stored_bits(frame.dtype)))


def require_independent(sample: ProductSample, manifest: Manifest) -> ProductSample:
    """Return the sample if no image was trained on and none appears twice, by decoded pixels.

    A held-out list is not the user's to edit: there, such images are left out with a warning. Leaving out by pixels, not by score, keeps the bound.

    Raises:
        CalibrationRefusedError: Naming the files.
        DataError: If a held-out file is not the one that was held out.
    """
    if sample.is_held_out:
        _require_hashes_as_listed(sample, manifest)
    trained = [part for part in sample.parts if part.sha256 in set(manifest.training_image_sha256)]
    first_with: dict[str, str] = {}
    doubles = [part for part in sample.parts if first_with.setdefault(part.sha256, part.name) != part.name]
    if sample.is_held_out and (trained or doubles):
        left_out = {part.name for part in trained + doubles}
        sample.warnings.append(
            f"left out {len(left_out)} held-out images with the pixels of a training image or of each other: {listed(sorted(left_out))}"
        )
        return replace(sample, parts=tuple(part for part in sample.parts if part.name not in left_out))
    if trained:
        raise CalibrationRefusedError(
            f"{len(trained)} of {len(sample.parts)} good images were trained on: {listed([p.name for p in trained])}; "
            "a threshold needs parts that training never saw"
        )
    if doubles:
        pairs = [f"{part.name} = {first_with[part.sha256]}" for part in doubles]
        raise CalibrationRefusedError(
            f"{len(doubles)} good images appear more than once: {listed(pairs)}; the bound needs one image per part, remove the copies"
        )
    return sample


def notes_on_sizes(sizes: FrameSizes, *, has_roi: bool) -> list[str]:
    """Return what a person should know about the sizes that a decision will allow, one sentence each."""
    notes = []
    if sizes.any_size and len(sizes.seen_hw) == 1:
        notes.append(f"--any-size changes nothing: every good image has {sizes} pixels; add images of the other sizes")
    if not sizes.any_size and len(sizes.seen_hw) > MANY_SIZES:
        notes.append(f"the good images have {len(sizes.seen_hw)} sizes, and frames of any other will be ERROR; if parts are cut out, use --any-size")
    if has_roi and len(sizes.seen_hw) > 1:
        notes.append("the good images have several sizes, and --roi lies at the same pixels of each of them")
    return notes


def listed(names: Sequence[str], *, shown: int = 5) -> str:
    """Return names separated by commas, the first few and how many more there are.

    >>> listed(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    text = ", ".join(names[:shown])
    return f"{text} and {len(names) - shown} more" if len(names) > shown else text


def _from_held_out(root: Path, manifest: Manifest, product: str | None) -> list[ProductSample]:
    if not manifest.held_out:
        raise ConfigError(
            "the manifest lists no held-out images; train with --hold-out 0.2, or give a folder of other good images without --held-out"
        )
    by_product: dict[str, list[GoodPart]] = {}
    for entry in manifest.held_out:
        path = root / entry["path"]
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"held-out path {entry['path']!r} leaves {root}; the manifest was altered")
        if not path.is_file():
            raise DataError(f"held-out image {path} is missing; with --held-out, --good is the folder that snl-train had as --data")
        by_product.setdefault(entry["class_name"], []).append(GoodPart(name=entry["path"], path=path))
    if product is not None and product not in by_product:
        raise ConfigError(f"no held-out image of product {product!r}; there are {listed(sorted(by_product))}")
    return [
        ProductSample(product=name, parts=tuple(sorted(parts, key=lambda part: part.name)), is_held_out=True)
        for name, parts in sorted(by_product.items())
        if product in (None, name)
    ]


def _from_folders(good: Path, manifest: Manifest, product: str | None, on_listed: Callable[[Listing], None]) -> list[ProductSample]:
    listing = list_images(good)
    on_listed(listing)
    listing.require_all()
    folders = {folder.name: folder for folder in sorted(good.iterdir()) if folder.is_dir() and not is_junk(folder.name)}
    known = [name for name in folders if name in manifest.classes]
    direct = listing.inside(good)
    if direct and known:
        raise DataError(f"{good} holds images and folders of products ({listed(known)}); give the images of one product, or one folder per product")
    own_name = good.resolve().name
    if direct or (not known and product not in folders and own_name in ((product,) if product else manifest.classes)):
        name = product or own_name
        if product is None and name not in manifest.classes:
            raise ConfigError(f"which product is {good}? its name is none of {listed(manifest.classes)}; say --product NAME")
        return [_from_folder(name, good, listing)]
    if product is not None:
        if product not in folders:
            raise ConfigError(f"{good} has no images and no folder {product!r}; it holds {listed(list(folders)) or 'no folder'}")
        return [_from_folder(product, folders[product], listing)]
    if not known:
        raise DataError(f"{good} holds no image, and no folder named after one of {listed(manifest.classes)}")
    samples = [_from_folder(name, folders[name], listing) for name in known]
    ignored = [name for name in folders if name not in manifest.classes]
    if ignored:
        samples[0].warnings.append(f"folders that are no product of this model were not fitted: {listed(ignored)}; name one with --product to fit it")
    return samples


def _from_folder(product: str, folder: Path, listing: Listing) -> ProductSample:
    paths = listing.below(folder)
    if not paths:
        raise DataError(f"{folder} holds no image; expected the good parts of {product!r} in it")
    not_good = find_not_good(path.relative_to(folder) for path in paths)
    if not_good:
        raise DataError(
            f"{folder} holds folders that do not say good: {listed(not_good)}; --good takes good parts of {product!r} only, name their folder"
        )
    return ProductSample(product=product, parts=tuple(GoodPart(name=path.relative_to(listing.root).as_posix(), path=path) for path in paths))


def _require_hashes_as_listed(sample: ProductSample, manifest: Manifest) -> None:
    expected = {entry["path"]: entry["sha256"] for entry in manifest.held_out}
    changed = [part.name for part in sample.parts if expected[part.name] != part.sha256]
    if changed:
        raise DataError(
            f"{len(changed)} held-out images have other pixels than at training: {listed(changed)}; "
            "use the folder and the --bit-depth that the model was trained with"
        )
