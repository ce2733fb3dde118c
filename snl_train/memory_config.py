"""Settings of a memory of normal features. Imports no torch, so that ``-h`` is instant."""

from dataclasses import dataclass

from snl_train.config_checks import check

DEFAULT_MEMORY_CENTERS = 512
"""Centers per layer of the method ``memory`` where none are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Memory of the teacher's normal features, see ``snl_train.models.memory``; the paper has none."""

    centers: int = 0
    """Centers per layer; 0 for no memory. The method ``memory`` takes 512 for 0."""
    layers: tuple[int, ...] = (1, 2)
    """Layers of the teacher that are remembered, of 1, 2 and 3."""
    positions_per_image: int = 256
    """Most cells of each training image and layer that centers are chosen from."""
    normalization_share: float = 0.2
    """Share of each product's training images that memory and student do not learn from: they set what the maps are divided by."""
    guaranteed_share: float = 1.0
    """Share of the centers that is dealt to the products evenly; the others go where features are worst covered, of whatever product."""

    def __post_init__(self) -> None:
        check("memory.centers", self.centers, "0 or more", self.centers >= 0)
        is_known = bool(self.layers) and list(self.layers) == sorted(set(self.layers) & {1, 2, 3})
        check("memory.layers", self.layers, "one or more of 1, 2, 3 in rising order", is_known)
        check("memory.positions_per_image", self.positions_per_image, "1 or more", self.positions_per_image >= 1)
        check("memory.normalization_share", self.normalization_share, "in (0, 1)", 0 < self.normalization_share < 1)
        check("memory.guaranteed_share", self.guaranteed_share, "in [0, 1]", 0 <= self.guaranteed_share <= 1)
