"""Every error the SDK raises on purpose.

* SnlError                       exit status 2 on the command line
  x ConfigError                  a flag or config key is unknown, missing or out of range
  x DataError                    an image, a mask or a folder cannot be used; the message names the file
  x FrameError                   a frame cannot become the network's input
  x CheckpointError              a checkpoint is truncated, altered or from another schema
  x TrainingDivergedError        the loss or a weight of a training is no longer a finite number
  x RankLostError                another process of a training on several ended, or did not answer in time
  x ManifestError                a model bundle is incomplete, altered or from another schema
    + SignatureError             the manifest is not signed with the expected key
  x NormalizationError           a normalization map cannot be fitted, or does not fit the model's maps
  x BackendError
    + BackendUnavailableError    a package or driver is missing; the message names the extra
    + EngineMismatchError        the engine was built for another GPU or library version
    + EngineBuildError           TensorRT refused to build; carries the library's log lines
      - BuildCanceledError       the build was canceled
    + InferenceError             a device call failed; the backend must be closed
    + BackendTimeoutError        a device call did not return in time
  x GoldenSampleError            the stored samples are missing or score differently here
  x DetectorClosedError          the detector was used after close()
  x SourceError
    + SourceOpenError            the camera, file or folder could not be opened
    + SourceStalledError         no frame arrived within the stated time
    + SourceEndedError           the source ended before it should have
  x SinkError                    a record or image could not be written (full disk, no permission)
    + DeliveryError              a broker or web server did not take a whole batch of records
  x TriggerRefusedError          the station is not ready for a trigger
  x RefusedError                 exit status 3: a gate or a calibration refused
    + ParityRefusedError         the exported file scores differently from the checkpoint
    + CalibrationRefusedError    the sample does not carry the promise

Command line tools print these as one line. Anything else that escapes is a bug in the SDK and keeps its traceback (exit status 1).
"""

from typing import ClassVar


class SnlError(Exception):
    """Base class of every error the SDK raises on purpose."""

    exit_status: ClassVar[int] = 2
    """What a command line tool exits with when this error reaches it."""


class ConfigError(SnlError):
    """A flag or configuration value is unknown, missing or out of range."""


class DataError(SnlError):
    """An image, a mask or a folder of images cannot be used."""


class FrameError(SnlError):
    """A frame cannot be turned into the network's input.

    Args:
        message: Why, in one sentence.
        reason_code: What the verdict ERROR on it carries.
    """

    def __init__(self, message: str, reason_code: str = "frame_unusable") -> None:
        super().__init__(message)
        self.reason_code = reason_code


class CheckpointError(SnlError):
    """A checkpoint cannot be loaded."""


class TrainingDivergedError(SnlError):
    """The loss or a weight of a training is no longer a finite number."""


class RankLostError(SnlError):
    """Another process of a training on several ended, or did not answer in time."""


class ManifestError(SnlError):
    """A model bundle does not match its manifest."""


class SignatureError(ManifestError):
    """A manifest is not signed with the expected key."""


class NormalizationError(SnlError):
    """A normalization map or an ignore mask cannot be fitted or used."""


class BackendError(SnlError):
    """An inference backend failed."""


class BackendUnavailableError(BackendError):
    """The backend's package or driver is not installed."""


class EngineMismatchError(BackendError):
    """The engine was built for a different GPU or library version."""


class EngineBuildError(BackendError):
    """TensorRT refused to build an engine."""


class BuildCanceledError(EngineBuildError):
    """The caller canceled the build."""


class InferenceError(BackendError):
    """One inference call failed; the backend must be closed."""


class BackendTimeoutError(BackendError):
    """One inference call did not return in time."""


class GoldenSampleError(SnlError):
    """The stored samples are missing or do not score as recorded.

    Args:
        message: What is wrong and what to do.
        difference: By how much a sample scored differently, relative to the largest map value recorded for it; None if none was scored.
    """

    def __init__(self, message: str, difference: float | None = None) -> None:
        super().__init__(message)
        self.difference = difference


class DetectorClosedError(SnlError):
    """The detector was used after it was closed, or in a fork of the process that opened it."""


class SourceError(SnlError):
    """A frame source failed."""


class SourceOpenError(SourceError):
    """The source could not be opened."""


class SourceStalledError(SourceError):
    """No frame arrived within the stated time."""


class SourceEndedError(SourceError):
    """The source ended before it should have."""


class SinkError(SnlError):
    """A record or image could not be written."""


class DeliveryError(SinkError):
    """A peer did not take a whole batch.

    Args:
        message: Why, in one sentence.
        acknowledged: Rows of the batch, from the first on, that it took all the same.
    """

    def __init__(self, message: str, *, acknowledged: int = 0) -> None:
        super().__init__(message)
        self.acknowledged = acknowledged


class TriggerRefusedError(SnlError):
    """A trigger came while the station was not ready; it has no record and no answer."""


class RefusedError(SnlError):
    """A gate or a calibration refused; nothing was written."""

    exit_status: ClassVar[int] = 3


class ParityRefusedError(RefusedError):
    """An exported file scores differently from the checkpoint it came from."""


class CalibrationRefusedError(RefusedError):
    """The calibration sample does not carry the promised bound."""
