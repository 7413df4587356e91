"""The one settings class: every setting of every process, read from `PARED_…` environment variables."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL


class Settings(BaseSettings):
    """Settings with their defaults: the embedded service, everything under one data directory.

    The three URLs move state to servers; all else may stay as it is.
    """

    model_config = SettingsConfigDict(env_prefix="PARED_", extra="ignore")

    data_dir: Path = Path("pared-data")
    """Where the embedded defaults keep the database, the objects and the broker's files."""
    database_url: str = ""
    """SQLAlchemy URL. Empty: `sqlite:///{data_dir}/pared.db`. Servers: `postgresql+psycopg://…`."""
    broker_url: str = ""
    """Celery broker. Empty: kombu's filesystem transport under `{data_dir}/broker`. Servers: `redis://…`."""
    objects_url: str = ""
    """Object store. Empty: `file://{data_dir}/objects`."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    require_keys: bool | None = None
    """None: keys are needed unless the bind is loopback."""
    max_upload_bytes: int = 16 * 2**30
    max_json_bytes: int = 2**20
    """Largest body of a request that is not an upload."""

    max_waiting_jobs: int = Field(500, ge=0)
    """Jobs of one owner that may wait; as for the next ones, 0: any number."""
    max_running_jobs: int = Field(0, ge=0)
    """Jobs of one owner that run at once. Below the number of workers, it keeps some free for others."""
    max_waiting_plans: int = Field(20, ge=0)
    """Plans of one owner that are not made yet."""
    max_inspecting_uploads: int = Field(200, ge=0)
    """Uploads of one owner that are not inspected yet."""
    max_stored_bytes: int = Field(1 << 40, ge=0)
    """Bytes of one owner's uploads and results. Of deleted uploads, until they are collected, so many again."""
    max_requests_per_s: float = Field(100.0, ge=0)
    """Requests of one owner to one API process, on average; twenty seconds' worth may come at once."""
    max_streams: int = Field(500, ge=0)
    """Event streams and long polls of one owner that one API process holds open."""

    lease_s: float = 45.0
    heartbeat_s: float = 10.0
    sweep_s: float = 5.0
    ring_again_s: float = 30.0
    """For a queued job whose message was sent this long ago another is sent."""
    max_attempts: int = 3
    """Attempts that may crash (die, stall, run out of memory) before a job is failed."""
    max_lost_attempts: int = 20
    """Attempts that may be lost with their worker before a job is failed."""
    stall_s: float = 600.0
    """A child silent for so long is killed."""
    inspect_time_s: float = 60.0
    """Wall clock of one inspection."""
    plan_time_s: float = 120.0
    """Wall clock of one plan."""
    job_time_s: float = 86400.0
    """Wall clock of a job that sets no `time_limit_s`."""
    cancel_grace_s: float = 10.0
    """Between TERM and KILL."""
    memory_bytes: int = Field(default=8 * 2**30)
    """Most memory of one child. Pages of mapped files, which the kernel can drop, do not count."""
    keep_unreferenced_s: float = 86400.0
    max_unfinished_uploads: int = Field(default=100, ge=0)
    """Uploads in pieces that one owner may have begun and not finished; each is kept `keep_unreferenced_s` after its
    last byte."""
    retention_days: float = Field(default=0.0, ge=0.0)
    """Jobs that ended longer ago go, with their reports and files, unless they are pinned; so do uploads of that age
    that no job names any more. 0: they stay."""
    teacher_answers_bytes: int = Field(default=4 * 2**30, ge=0)
    """Most bytes of teachers' answers that a worker's machine keeps for later jobs of the same owner; 0: none."""
    latency_s: float = Field(default=2.0, gt=0)
    """Most wall clock that measuring the latency of two models takes at one batch size. Children and the library read
    it from the environment."""
    allow_weak_sandbox: bool = False
    """Open TorchScript below the sandbox level `standard`."""
    threads: int = 0
    """Threads of one job; 0 is one for each core this process may use."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What a worker computes on. `auto`: an NVIDIA GPU if one works, else the processor; `cuda`: a GPU, or it takes no
    jobs; `cpu`: the processor alone."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that processes log. `debug` also writes what each job's process reports and prints."""

    @model_validator(mode="after")
    def _leases_outlive_a_sweep(self) -> Settings:
        if self.lease_s <= self.heartbeat_s + self.sweep_s:
            raise ValueError(
                f"PARED_LEASE_S ({self.lease_s:g}) must be above PARED_HEARTBEAT_S ({self.heartbeat_s:g}) and "
                f"PARED_SWEEP_S ({self.sweep_s:g}) together: a lease is renewed with each heartbeat, and a sweep that "
                "was held up must not take the jobs of workers that live"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys_required(self) -> bool:
        """Whether every request needs an API key."""
        return not self.loopback if self.require_keys is None else self.require_keys

    @property
    def effective_database_url(self) -> str:
        """The database URL with the embedded default filled in."""
        return (
            self.database_url
            or URL.create("sqlite", database=str(self.data_dir.resolve() / "pared.db")).render_as_string()
        )

    @property
    def effective_broker_url(self) -> str:
        """The broker URL with the embedded default filled in."""
        return self.broker_url or "filesystem://"

    @property
    def effective_objects_url(self) -> str:
        """The object store URL with the embedded default filled in."""
        return self.objects_url or (self.data_dir.resolve() / "objects").as_uri()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
