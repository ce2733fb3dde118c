"""Frames for the parity gate; :mod:`snl_runtime.parity_frames` owns them, because engines are compared on the same ones."""

from snl_runtime.parity_frames import DERIVED_LIMIT, DERIVED_SOURCE, FrameSet, GateFrame, derived_frames, folder_frames

__all__ = ["DERIVED_LIMIT", "DERIVED_SOURCE", "FrameSet", "GateFrame", "derived_frames", "folder_frames"]
