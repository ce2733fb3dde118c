"""The grid of tiles in which a product will be inspected, alone or beside the whole frame."""

from snl_runtime.errors import CalibrationRefusedError
from snl_runtime.images.views import choose_tiles, tile_views
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.model.manifest import Manifest, TileGrid

from .options import CalibrationOptions


def fit_tiles(options: CalibrationOptions, sizes: FrameSizes, manifest: Manifest) -> TileGrid | None:
    """Return the grid over the inspected part of the frames, None where they are seen as a whole.

    Args:
        options: Side and overlap of a tile, whether the whole frame is seen beside them, and the inspected part.
        sizes: Those of the good parts.
        manifest: Says the size of the network's input, and in which tiles it was trained.

    Raises:
        CalibrationRefusedError: If the inspected parts differ in size: then their grids would, too.
        ConfigError: If the network has no square input, the overlap is not smaller than a tile, or the whole frame has no tiles to be seen beside.
    """
    tiles = choose_tiles(manifest.training_tiles, tile_px=options.tile_px, overlap_px=options.overlap_px, with_whole_frame=options.with_whole_frame)
    if tiles is None:
        return None
    if options.roi_xyxy is not None:
        left, top, right, bottom = options.roi_xyxy
        part_hw = (bottom - top, right - left)
    elif sizes.any_size or len(sizes.seen_hw) > 1:
        raise CalibrationRefusedError(f"tiles need inspected parts of one size; the frames have {sizes}: give those of one, a --roi, or --tile 0")
    else:
        part_hw = sizes.seen_hw[0]
    views = tile_views(part_hw, manifest.size_hw, tiles)
    return TileGrid(**tiles._asdict(), map_hw=views.map_hw, count=views.count)
