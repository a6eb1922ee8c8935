"""The exceptions of stars-deploy: one tree, and messages that a user can act on.

Every message says *where* the problem is, *what was got*, *what is allowed* and *what to do*.
``exit_code`` is what the command line returns for it.
"""

from __future__ import annotations


class StarsDeployError(Exception):
    """Base of every error that stars-deploy raises on purpose.

    Parameters
    ----------
    where : str
        File, option, layer or argument at fault.
    got : object
        What was found there.
    allowed : str, optional
        What would have been accepted.
    remedy : str, optional
        What the user can do next.
    """

    exit_code = 2

    def __init__(self, where: str, got: object, allowed: str = "", remedy: str = "") -> None:
        self.where = where
        self.got = got
        self.allowed = allowed
        self.remedy = remedy
        parts = [f"{where}: {got}"]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if remedy:
            parts.append(f"what to do: {remedy}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[type[StarsDeployError], tuple[str, object, str, str]]:
        # Exceptions cross process boundaries (Lava, worker pools): rebuild from all four parts.
        return type(self), (self.where, self.got, self.allowed, self.remedy)


class ConfigError(StarsDeployError):
    """An option or a configuration value that is not allowed."""


class TeacherError(StarsDeployError):
    """A teacher that cannot be loaded, or that cannot be distilled."""


class DataError(StarsDeployError):
    """An evaluation set that is missing, unreadable or does not fit the teacher."""


class GraphError(StarsDeployError):
    """A spiking or quantised graph that is inconsistent."""


class QuantizationError(StarsDeployError):
    """A network that does not fit the integers of the chip (ranges, or the overflow proof)."""


class FormatError(StarsDeployError):
    """A file that is not what its name says, is truncated, or holds what we refuse to skip."""


class ArtifactError(StarsDeployError):
    """An artefact that could not be written, found or trusted."""


class TargetError(StarsDeployError):
    """A target that is unknown, not available here, or that cannot carry a network."""


class VerificationError(StarsDeployError):
    """A target computed something else than the integer reference."""

    exit_code = 1
