"""Every error the library raises on purpose.

LabelingError
├── ConfigurationError          what was asked for cannot work; retrying does not help
│   ├── PlanError               a plan that is not valid: names file, line, expected and got
│   ├── ThresholdsError         a thresholds file that is not valid: file, line, expected, got
│   ├── CorrectionsError        corrections that cannot be imported: file, position, expected, got
│   ├── AuditError              verdicts of an audit that cannot be read: file, line, expected, got
│   ├── HomeError               a home that belongs to another image root
│   ├── UnknownModelError       a model name that resolves to nothing
│   └── MissingDependencyError  an optional package that this model needs
├── ImageError                  one image that cannot be used; costs that image only
├── SourceError                 images that cannot be reached just now; retried, then raised
├── ModelError                  a model that could not be loaded or could not answer
├── RequestError                a request to the HTTP service that is not answered
└── StoreError                  the annotation store
    ├── StoreBusyError          another process holds the file; retried, then raised
    └── StoreVersionError       a file written by a newer version of this package or of DuckDB
"""


class LabelingError(Exception):
    """Base of every error raised on purpose."""


class ConfigurationError(LabelingError):
    """What was asked for cannot work until somebody changes it."""


class PlanError(ConfigurationError):
    """A labeling plan that is not valid."""


class ThresholdsError(ConfigurationError):
    """A thresholds file that is not valid."""


class CorrectionsError(ConfigurationError):
    """A file of corrections that cannot be imported; nothing of it was."""


class AuditError(ConfigurationError):
    """A file of an audit that cannot be read; it was left as it is."""


class HomeError(ConfigurationError):
    """A home that cannot serve this image root."""


class UnknownModelError(ConfigurationError):
    """A model name that is neither registered, nor a folder, nor a hub repository."""


class MissingDependencyError(ConfigurationError):
    """An optional package that the chosen model needs is not installed."""


class ImageError(LabelingError):
    """One image cannot be used. ``reason`` is a short stable word, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class SourceError(LabelingError):
    """The storage of the images cannot be reached just now, whichever image is asked for."""


class ModelError(LabelingError):
    """A model could not be loaded or could not answer."""


class RequestError(LabelingError):
    """A request to the HTTP service is not answered. ``status`` is that of HTTP; ``retry_after_s``
    says when the same request may fare better, if ever."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class StoreError(LabelingError):
    """The annotation store could not do what was asked."""


class StoreBusyError(StoreError):
    """Another process holds the store for longer than we were willing to wait."""


class StoreVersionError(StoreError):
    """The store was written by a newer version of this package, or of DuckDB."""
