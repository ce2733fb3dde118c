"""How anomalib's PatchCore chooses its coreset: as the package does, with compiled code, or with bounds on distances. The rule is the package's."""

import contextlib
from collections.abc import Iterator
from typing import Any


def coreset_choice(*, compiled: bool, bounded: bool) -> contextlib.AbstractContextManager[None]:
    """Return what a PatchCore must be trained in: nothing, :func:`compiled_coreset` or :func:`bounded_coreset`."""
    if compiled:
        return compiled_coreset()
    return bounded_coreset() if bounded else contextlib.nullcontext()


@contextlib.contextmanager
def compiled_coreset() -> Iterator[None]:
    """Compile anomalib's own update of the distances to PatchCore's coreset (``KCenterGreedy.update_distances``).

    The rule stays the package's. Sums of squares are added up in another order, so that where two points are as far away as float32 can tell, the
    other one may be taken.
    """
    import torch
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    original = KCenterGreedy.update_distances
    KCenterGreedy.update_distances = torch.compile(original, dynamic=False)
    try:
        with torch._dynamo.config.patch(capture_scalar_outputs=True):  # the point chosen last is an index on the device
            yield
    finally:
        KCenterGreedy.update_distances = original
        torch._dynamo.reset()  # the next run has another number of points


@contextlib.contextmanager
def bounded_coreset() -> Iterator[None]:
    """Choose with :func:`benchmarks.accuracy.farthest.farthest_points` instead of ``KCenterGreedy.select_coreset_idxs``, on a CPU.

    Projection and first point stay the package's. Sums of squares are added up in another order here too.
    """
    import torch
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    from benchmarks.accuracy.farthest import farthest_points
    from snl_runtime.progress import Progress

    def select_coreset_idxs(sampler: Any) -> list[int]:
        features = sampler.model.fit(sampler.embedding).transform(sampler.embedding).numpy()  # (N, D) float32
        start = int(torch.randint(high=sampler.n_observations, size=(1,)))
        with Progress(sampler.coreset_size, unit="points", label="coreset", done=1) as progress:
            chosen = farthest_points(features, start, sampler.coreset_size, advance=progress.advance)
        return [int(one) for one in chosen]

    original = KCenterGreedy.select_coreset_idxs
    KCenterGreedy.select_coreset_idxs = select_coreset_idxs
    try:
        yield
    finally:
        KCenterGreedy.select_coreset_idxs = original
