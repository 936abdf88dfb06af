"""Errors that a user can mend: one line that says what was got, what is accepted and what to do."""


class FastqatError(Exception):
    """Base of the errors that the command line prints in one line."""


class InputError(FastqatError, ValueError):
    """An argument is outside what is accepted."""


class DataError(FastqatError, ValueError):
    """A data set is missing, empty or has labels out of range."""


class CalibrationError(FastqatError, RuntimeError):
    """A quantizer is used before its range is known."""


class CheckpointError(FastqatError, RuntimeError):
    """A checkpoint is damaged or belongs to another model."""


class BackendError(FastqatError, RuntimeError):
    """A backend was asked for by name and cannot run."""


class ProcessError(FastqatError, RuntimeError):
    """Another process failed or is gone; `told` when that one says so itself, `rank`: which one, where that is known."""

    def __init__(self, message: str, told: bool = False, rank: int | None = None):
        super().__init__(message)
        self.told, self.rank = told, rank
