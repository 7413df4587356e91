"""The one settings class: every setting of every process, read from `PARED_…` environment variables."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from pared.state.places import Bucket, place_of

QUEUE_NAMES = ("auto", "cpu", "cuda", "quick")
"""What `queues` may name."""


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
    """Object store. Empty: `file://{data_dir}/objects`. Servers: `s3://bucket/prefix`, with the extra `s3`; what
    is not in the URL is read from its usual variables, such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID."""
    presigned_downloads: bool = False
    """Answer downloads of results from an `s3://` store with a redirect to a URL of the store's that works for five
    minutes, rather than with the bytes. Clients must reach the store."""

    host: str = "127.0.0.1"
    """Address that the API listens at."""
    port: int = Field(8000, ge=1, le=65535)
    """Port that the API listens at."""
    api_processes: int = Field(1, ge=1, le=64)
    """Processes that serve the API at this port. Limits of one API process are of each of them."""
    require_keys: bool | None = None
    """None: keys are needed unless the bind is loopback."""
    max_upload_bytes: int = 16 * 2**30
    """Largest file of a model or a data set."""
    max_json_bytes: int = 2**20
    """Largest body of a request that is not an upload."""

    max_waiting_jobs: int = Field(500, ge=0)
    """Jobs of one owner that may wait; as for the next ones, 0: any number."""
    max_running_jobs: int | None = Field(None, ge=0)
    """Jobs of one owner that run at once. None: all workers of a kind but one, where several owners have keys."""
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
    max_webhooks: int = Field(20, ge=0)
    """Webhooks of one owner."""
    allow_private_webhooks: bool = False
    """Send notices to loopback and private networks too. Then owners make this server send requests inside them."""
    trusted_proxies: str = ""
    """Addresses and networks of proxies, with commas between them, whose `X-Forwarded-For` says who the client is.
    Requests that come through any other proxy need a key, unless `require_keys` is off."""
    max_connections: int = Field(4096, ge=16)
    """Open connections of one API process, or fewer where it may not open so many files."""
    max_header_bytes: int = Field(default=128 * 2**10, ge=4096)
    """Of a request's first line and its headers together."""
    header_time_s: float = Field(10.0, gt=0)
    """In which all headers of a request must have come."""
    body_time_s: float = Field(30.0, gt=0)
    """A body must bring 500 bytes a second on average over each such time."""
    answer_time_s: float = Field(60.0, gt=0)
    """A client must take 500 bytes a second of what it is sent, on average over each such time."""
    max_open_streams: int = Field(1000, ge=1)
    """Event streams and long polls of all owners that one API process keeps open."""

    lease_s: float = 20.0
    """How long a job stays a worker's that no longer renews its claim; then another goes on with it."""
    heartbeat_s: float = 5.0
    """How often a worker renews its claim."""
    sweep_s: float = 5.0
    """How often a worker looks for jobs whose worker is lost, and for what is past its age."""
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
    """Most memory of one child, or of all those that train one job together. Pages of mapped files, which the kernel
    can drop, do not count."""
    inspect_memory_bytes: int = Field(default=2**30)
    """Most memory of the inspection of a model, and eight times the size of its file on top; never above
    `memory_bytes`."""
    keep_unreferenced_s: float = 86400.0
    """How long stored bytes stay that no row names."""
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
    ranks: int = Field(default=1, ge=1, le=64)
    """Processes that train the model of one job together on the processor, each on its share of every batch and of the
    threads; never more than there are threads. `memory_bytes` is of all of them together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What a worker computes on. `auto`: an NVIDIA GPU if one works, else the processor; `cuda`: a GPU, or it takes no
    jobs; `cpu`: the processor alone."""

    queues: str = ""
    """What a worker takes, of `auto`, `cpu`, `cuda` (jobs that ask for no device, or for this one) and `quick` (plans
    and inspections), with commas between them. Empty: all that its devices allow."""

    log_bytes: int = Field(default=64 * 2**20, ge=2**20)
    """Size from which `pared up` begins a log file anew; four earlier ones stay."""
    failpoints: str = ""
    """For tests alone: where processes kill themselves, as `pared.state.failpoints` says."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that processes log. `debug` also writes what each job's process reports and prints."""
    otlp_url: str = ""
    """Address of a collector that takes OpenTelemetry's traces by OTLP over HTTP, such as `http://127.0.0.1:4318`. It
    needs the extra `tracing`. Empty: there are no traces."""

    @model_validator(mode="after")
    def _leases_outlive_a_sweep(self) -> Settings:
        if self.lease_s <= self.heartbeat_s + self.sweep_s:
            raise ValueError(
                f"PARED_LEASE_S ({self.lease_s:g}) must be above PARED_HEARTBEAT_S ({self.heartbeat_s:g}) and "
                f"PARED_SWEEP_S ({self.sweep_s:g}) together: a lease is renewed with each heartbeat, and a sweep that "
                "was held up must not take the jobs of workers that live"
            )
        return self

    @field_validator("objects_url")
    @classmethod
    def _objects_are_where_they_can_be(cls, value: str) -> str:
        if value:
            place_of(value)
        return value

    @model_validator(mode="after")
    def _only_buckets_presign(self) -> Settings:
        if self.presigned_downloads and not isinstance(self.objects_place, Bucket):
            raise ValueError("PARED_PRESIGNED_DOWNLOADS needs a PARED_OBJECTS_URL such as s3://bucket/prefix")
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, value: str) -> str:
        for proxy in _listed(value):
            ip_network(proxy, strict=False)
        return value

    @field_validator("queues")
    @classmethod
    def _queues_are_there(cls, value: str) -> str:
        if value:
            queues_named(value)
        return value

    @field_validator("otlp_url")
    @classmethod
    def _collector_speaks_http(cls, value: str) -> str:
        if value and not (urlsplit(value).scheme in ("http", "https") and urlsplit(value).hostname):
            raise ValueError("must be an address such as http://127.0.0.1:4318")
        return value

    @property
    def proxies(self) -> list[str]:
        """The addresses and networks of `trusted_proxies`."""
        return _listed(self.trusted_proxies)

    @property
    def taken_queues(self) -> list[str]:
        """The names in `queues`, with the default filled in."""
        return queues_named(self.queues) if self.queues else [*QUEUE_NAMES]

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        return self.host == "localhost" or is_loopback(self.host)

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
    def objects_place(self) -> Path | Bucket:
        """Where the objects are, with the embedded default filled in."""
        return place_of(self.objects_url) if self.objects_url else self.data_dir.resolve() / "objects"

    @property
    def staging_dir(self) -> Path:
        """Where files wait on this machine that go into a bucket."""
        return self.data_dir.resolve() / "staging"


def queues_named(text: str) -> list[str]:
    """The names in a list of queues with commas. Raises ValueError where one is none of them, or there is none."""
    names = _listed(text)
    if unknown := [name for name in names if name not in QUEUE_NAMES]:
        raise ValueError(
            f"there is no queue {unknown[0]}: write some of {', '.join(QUEUE_NAMES)}, with commas between them"
        )
    if not names:
        raise ValueError(f"it names no queue: write some of {', '.join(QUEUE_NAMES)}, with commas between them")
    return names


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@lru_cache(maxsize=1024)  # each request asks
def is_loopback(address: str) -> bool:
    """Whether this is an address of this machine itself."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
