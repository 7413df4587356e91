"""Every named error pared can give: one base class, one subclass a problem, each with its HTTP status.

The same family serves both edges: the API turns an error into an RFC 9457 problem, and the worker
writes `{code, title, detail}` of an error met inside a job to the job row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class ParedError(Exception):
    """A problem pared can name. `detail` says what is wrong and what to do about it."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, errors: list[dict[str, str]] | None = None) -> None:
        """Args: detail: a sentence for the person; errors: `{pointer, detail}` of each bad field."""
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or []

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 members of this error, without the request id."""
        problem: dict[str, Any] = {
            "type": f"/problems/{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            problem["errors"] = self.errors
        return problem

    def as_job_error(self) -> dict[str, Any]:
        """What a failed job carries in `error`."""
        return {"code": self.code, "title": self.title, "detail": self.detail}


# -- requests -----------------------------------------------------------------------------------


class ValidationError(ParedError):
    """The request is malformed; `errors` points at each bad field."""

    code, title, status = "validation", "The request is not valid", 422


class Unauthorized(ParedError):
    """No API key, or one we do not know."""

    code, title, status = "unauthorized", "An API key is needed", 401


class Forbidden(ParedError):
    """The request comes from where requests to this server must not come from."""

    code, title, status = "forbidden", "Not allowed from there", 403


class ScopeMissing(ParedError):
    """The key works, but not for this."""

    code, title, status = "scope-missing", "The key does not allow this", 403


class NotFound(ParedError):
    """No such thing, or it belongs to another key."""

    code, title, status = "not-found", "Not found", 404


class NotAcceptable(ParedError):
    """There is no such representation of this."""

    code, title, status = "not-acceptable", "Not to be had in this form", 406


class Conflict(ParedError):
    """The thing exists but is in a state that does not allow this."""

    code, title, status = "conflict", "Not possible in this state", 409


class NotReady(Conflict):
    """The thing will allow this later: try again after `Retry-After`."""

    code, title, status = "not-ready", "Not ready yet", 409


class DeviceUnavailable(Conflict):
    """No device of the kind that was asked for is there, or it cannot be used."""

    code, title, status = "device-unavailable", "No such device", 409


class PreconditionFailed(ParedError):
    """`If-Match` named another version."""

    code, title, status = "precondition-failed", "It has changed", 412


class TooLarge(ParedError):
    """More bytes than this server takes."""

    code, title, status = "too-large", "Too large", 413


class UnsupportedModel(ParedError):
    """The file is not a model that pared opens."""

    code, title, status = "unsupported-model", "Not a model we open", 415


class UnsupportedDataset(ParedError):
    """The file is not a data set that pared opens."""

    code, title, status = "unsupported-dataset", "Not a data set we open", 415


class RangeNotSatisfiable(ParedError):
    """The byte range lies outside the object."""

    code, title, status = "range-not-satisfiable", "No such range", 416


class UnsupportedMediaType(ParedError):
    """The body is of another kind than the route takes."""

    code, title, status = "unsupported-media-type", "Not a body of this kind", 415


class UnsupportedTusVersion(ParedError):
    """The request is not of the version of the tus protocol that this server speaks."""

    code, title, status = "unsupported-tus-version", "Another version of tus", 412


class UnsupportedChecksum(ParedError):
    """The checksum of a piece is of an unknown kind, or is none."""

    code, title, status = "unsupported-checksum", "No checksum of a known kind", 400


class ChecksumMismatch(ParedError):
    """What arrived is not what the checksum was made of; it was thrown away."""

    code, title, status = "checksum-mismatch", "The checksum does not match", 460


class IdempotencyMismatch(ParedError):
    """The same Idempotency-Key came with another body."""

    code, title, status = "idempotency-mismatch", "This Idempotency-Key was used for another request", 422


class TooManyRequests(ParedError):
    """A quota is used up for now."""

    code, title, status = "too-many-requests", "Over the quota", 429


class OverLimit(TooManyRequests):
    """One of an owner's limits is reached; `limit` names it, as `GET /v1/limits` does."""

    def __init__(self, detail: str, *, limit: str, retry_after_s: int) -> None:
        """Args: limit: its name; retry_after_s: when trying again may help."""
        super().__init__(detail)
        self.limit = limit
        self.retry_after_s = retry_after_s

    def problem(self) -> dict[str, Any]:
        return super().problem() | {"limit": self.limit}


class StorageFull(ParedError):
    """The object store has no room."""

    code, title, status = "storage-full", "No room left to store this", 507


class Unavailable(ParedError):
    """The database, queue or store does not answer."""

    code, title, status = "unavailable", "Temporarily unavailable", 503


class CorruptObject(ParedError):
    """Stored bytes no longer have the digest they were stored with; they are never served."""

    code, title, status = "corrupt-object", "The stored bytes are damaged", 500


# -- inside a job -------------------------------------------------------------------------------


class ShapeMismatch(ParedError):
    """Model and data (or weights and architecture) do not fit each other."""

    code, title, status = "shape-mismatch", "The shapes do not fit", 422


class InvalidArchitecture(ParedError):
    """The architecture is unknown or does not build."""

    code, title, status = "invalid-architecture", "Not an architecture we can build", 422


class InvalidData(ParedError):
    """The data set opens, but its contents cannot be used: NaN, labels out of range, too few samples."""

    code, title, status = "invalid-data", "The data cannot be used", 422


class NothingToPrune(ParedError):
    """Nothing in the model can be removed under this spec; the detail names layers and reasons."""

    code, title, status = "nothing-to-prune", "Nothing can be removed", 422


class NothingToQuantize(ParedError):
    """No layer of the model can become int8 under this spec, or all that could are; the detail says which."""

    code, title, status = "nothing-to-quantize", "Nothing can be quantized", 422


class ModelFailed(ParedError):
    """The model's own forward (or backward) raised; the detail carries its message."""

    code, title, status = "model-failed", "The model itself failed", 422


class Diverged(ParedError):
    """The training loss stopped being a finite number."""

    code, title, status = "diverged", "Training diverged", 422


class NotFinite(ParedError):
    """The result answers NaN or infinity where the upload gives finite numbers; the detail names samples and layer."""

    code, title, status = "not-finite", "The result is not finite", 422


class ExportFailed(ParedError):
    """An output format could not be written for this model."""

    code, title, status = "export-failed", "The result could not be exported", 422


class SandboxTooWeak(ParedError):
    """This machine cannot confine a program well enough to open TorchScript."""

    code, title, status = "sandbox-too-weak", "The sandbox is too weak for this file", 422


class ModelCrashesWorker(ParedError):
    """Every attempt ended with the process dead."""

    code, title, status = "model-crashes-worker", "The model ended its process", 422


class Stalled(ParedError):
    """No progress within the stall limit, on every attempt."""

    code, title, status = "stalled", "No progress", 422


class OutOfMemory(ParedError):
    """The job went past its memory limit."""

    code, title, status = "out-of-memory", "Out of memory", 422


class TimeLimit(ParedError):
    """The job ran past its time limit."""

    code, title, status = "time-limit", "Out of time", 422


class OutOfAttempts(ParedError):
    """The worker running this job was lost on every attempt."""

    code, title, status = "out-of-attempts", "The worker was lost too often", 500


# -- packed files -------------------------------------------------------------------------------


class UnreadablePacked(ParedError):
    """A packed file cannot be read; the subclasses say why."""

    code, title, status = "unreadable-packed", "The packed file cannot be read", 422


class NotPacked(UnreadablePacked):
    """The file is something else."""

    code, title, status = "not-packed", "Not a packed file", 415


class NewerPacked(UnreadablePacked):
    """The file is of a later version of the format."""

    code, title, status = "newer-packed", "The packed file is of a newer format", 422


class DamagedPacked(UnreadablePacked):
    """The file was cut off or changed, or contradicts itself."""

    code, title, status = "damaged-packed", "The packed file is damaged", 422


class PackedTooLarge(UnreadablePacked):
    """The file says that it unpacks to more than the reader takes."""

    code, title, status = "packed-too-large", "The packed file unpacks to too much", 422


def telling_line(error: BaseException, *, words: Sequence[str] = (), limit: int = 500) -> str:
    """The line of another library's error that says what is wrong.

    The first one; the last one where TorchScript puts its own traceback before the message; the error's class where
    there is no message.

    Args:
        words: a line that holds one of these is taken before any other.
        limit: most characters.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    named = next((line for line in lines if any(word in line for word in words)), None)
    return (named or lines[-1 if "TorchScript" in lines[0] else 0])[:limit]


BY_CODE: dict[str, type[ParedError]] = {
    kind.code: kind for kind in list(vars().values()) if isinstance(kind, type) and issubclass(kind, ParedError)
}
"""Each error by the code that a failed job carries."""
