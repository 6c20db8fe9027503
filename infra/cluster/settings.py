"""The settings of a cluster: what infra/settings.yaml may say.

Each field is explained there, beside its value; here stand its type and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, field_validator, model_validator

from adu.config import StrictModel, parse_config
from adu.errors import UserError

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "infra" / "settings.yaml"

DAY_S = 24 * 3600
# What a worker needs beside shared memory: processes that hold model and libraries.
PROCESS_GIB = 4
# Ray's object store, through which almost nothing goes.
OBJECT_STORE_GIB = 1
# Logs, the home folder and what libraries put into /tmp.
SCRATCH_GIB = 8

Text = StringConstraints
# KubeRay takes 47 characters, of which a night's number is ten.
Name = Annotated[str, Text(pattern=r"^[a-z0-9]([-a-z0-9]{0,34}[a-z0-9])?$")]
# Pinned by a version or a digest: what runs is known.
Image = Annotated[
    str, Text(pattern=r"^[^\s:@]+(:\d+/[^\s:@]+)?(:[^\s:@]*\d[^\s:@]*)(@sha256:[0-9a-f]{64})?$")
]
Bucket = Annotated[str, Text(pattern=r"^s3://[a-z0-9.-]+$")]
Host = Annotated[str, Text(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
Cron = Annotated[str, Text(pattern=r"^\d+ \d+ \S+ \S+ \S+$")]
# A shell takes the entrypoint apart: nothing that it would read as its own.
Word = Annotated[str, Text(pattern=r"^[A-Za-z0-9_.,:/=@%+-]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]


class Images(StrictModel):
    """What pods run."""

    cpu: Image
    cuda: Image
    redis: Image
    postgres: Image
    ray: Annotated[str, Text(pattern=r"^\d+\.\d+\.\d+$")]


class Storage(StrictModel):
    """Buckets and volumes."""

    bucket: Bucket
    mlflow_bucket: Bucket
    backup_bucket: Bucket
    region: str
    ports: tuple[Port, ...] = Field(min_length=1)
    volume_class: str | None


class Network(StrictModel):
    """Where the cluster's own services are."""

    dns_namespace: Name
    api_ports: tuple[Port, ...] = Field(min_length=1)


class Mlflow(StrictModel):
    """The tracking server."""

    host: Host | None
    ingress_class: Name
    ingress_namespace: Name
    ingress_annotations: dict[str, str]
    tls_secret: Name
    cpus: Count
    memory_gib: Annotated[int, Field(ge=2)]


class Postgres(StrictModel):
    """MLflow's database, and its backup."""

    instances: Count
    size_gib: Count
    backup_schedule: Cron
    backup_keep: Count
    drill_schedule: Cron


class Redis(StrictModel):
    """Ray's control store."""

    size_gib: Count


class Monitoring(StrictModel):
    """Who looks from outside."""

    operator: bool
    namespace: Name
    labels: dict[str, str]


class Queue(StrictModel):
    """Kueue's quota."""

    cpus: Count
    memory_gib: Count
    disk_gib: Count
    gpus: Annotated[int, Field(ge=0)]


class Ingest(StrictModel):
    """Images that become a manifest."""

    source: Word
    arguments: tuple[Word, ...] = ()


class Model(StrictModel):
    """Weights that are copied into the bucket."""

    backbone: Word


class Search(StrictModel):
    """One search: a Ray cluster of its own, which comes and goes."""

    space: Path
    manifest: Word | None
    backbone: Word | None
    arguments: tuple[Word, ...]
    image: Literal["cuda", "cpu"]
    workers: Count
    min_workers: Annotated[int, Field(ge=0)] | None
    worker_cpus: Count
    worker_memory_gib: Count
    # A worker pod is one executor.
    gpus: Annotated[int, Field(ge=0, le=1)]
    gpu_resource: str
    images_gib: Count
    disk_gib: Count
    head_cpus: Count
    head_memory_gib: Annotated[int, Field(ge=4)]
    worker_selector: dict[str, str]
    worker_tolerations: tuple[dict[str, str | int], ...]
    head_selector: dict[str, str]
    queue: Name | None
    schedule: Cron | None
    time_zone: str
    retries: Annotated[int, Field(ge=0)]
    deadline_s: Count
    keep_s: Annotated[int, Field(ge=0)]

    @property
    def shm_gib(self) -> int:
        """Shared memory of a worker: the images take at most half of what is free."""
        return OBJECT_STORE_GIB + 2 * self.images_gib

    @property
    def tmp_gib(self) -> int:
        """The folder for temporary files, where images go that find no room there."""
        return self.disk_gib - SCRATCH_GIB

    @property
    def test_images_gib(self) -> int:
        """Test images on a worker's disk: what is over its limit has the pod evicted."""
        return self.tmp_gib - self.images_gib

    @property
    def scales(self) -> bool:
        """Whether workers come and go with the work."""
        return self.min_workers is not None

    @property
    def memory_gib(self) -> int:
        """Of head and all workers, and the submitter's."""
        return self.head_memory_gib + self.workers * self.worker_memory_gib + 1

    @model_validator(mode="after")
    def _fits(self) -> Search:
        if self.worker_memory_gib < self.shm_gib + PROCESS_GIB:
            raise ValueError(
                f"worker_memory_gib = {self.worker_memory_gib}: shared memory for images_gib = "
                f"{self.images_gib} takes {self.shm_gib}, the process {PROCESS_GIB}: at least "
                f"{self.shm_gib + PROCESS_GIB}"
            )
        if self.tmp_gib < 2 * self.images_gib:
            least = SCRATCH_GIB + 2 * self.images_gib
            raise ValueError(f"disk_gib = {self.disk_gib}: at least {least} for images_gib")
        if self.min_workers is not None and self.min_workers >= self.workers:
            raise ValueError("min_workers: fewer than workers, or null")
        if self.queue and self.scales:
            raise ValueError(
                "queue: Kueue admits no cluster that scales itself (min_workers: null)"
            )
        if self.queue and self.schedule:
            raise ValueError("queue: not with a schedule, whose RayJobs have no label of Kueue's")
        if self.schedule and (1 + self.retries) * self.deadline_s >= DAY_S:
            raise ValueError(
                f"deadline_s = {self.deadline_s}: {1 + self.retries} tries must end within a day, "
                "before the next one begins: nothing else keeps two apart"
            )
        return self


class Settings(StrictModel):
    """All settings of a cluster."""

    namespace: Name
    images: Images
    storage: Storage
    network: Network
    mlflow: Mlflow
    postgres: Postgres
    redis: Redis
    monitoring: Monitoring
    queue: Queue
    ingests: dict[Name, Ingest]
    models: dict[Word, Model]
    searches: dict[Name, Search]

    @field_validator("models")
    @classmethod
    def _plain_names(cls, models: dict[str, Model]) -> dict[str, Model]:
        for name in models:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name):
                raise ValueError(f"models: '{name}' (letters, digits, dots and hyphens alone)")
        return models

    @field_validator("searches")
    @classmethod
    def _names_of_no_job(cls, searches: dict[str, Search]) -> dict[str, Search]:
        """A search's submitter is a Job of its name."""
        for name in searches:
            if name.endswith("-check") or name.startswith(("ingest-", "model-")):
                raise ValueError(
                    f"'{name}': Jobs of this project have such names (NAME-check, ingest-NAME)"
                )
        return searches

    @model_validator(mode="after")
    def _quota_holds_a_search(self) -> Settings:
        for name, search in self.searches.items():
            if search.queue is None:
                continue
            needs = {
                "cpus": search.head_cpus + search.workers * search.worker_cpus + 1,
                "memory_gib": search.memory_gib,
                "disk_gib": (1 + search.workers) * search.disk_gib + 1,
                "gpus": search.workers * search.gpus,
            }
            for what, need in needs.items():
                quota = getattr(self.queue, what)
                if need > quota:
                    raise ValueError(
                        f"queue.{what} = {quota}: search '{name}' needs {need}, would wait for ever"
                    )
        return self


def load_settings(file: Path | None = None) -> Settings:
    """Reads the settings: those of infra/settings.yaml, and over them a file's.

    Raises:
        UserError: If a file cannot be read or a value is not allowed.
    """
    values = _read(SETTINGS)
    if file is not None:
        values = _merged(values, _read(file))
    source = str(file or SETTINGS)
    defaults = _mapping(values.pop("search_defaults", None), f"{source}: search_defaults")
    searches = _mapping(values.get("searches"), f"{source}: searches")
    values["searches"] = {
        name: {**defaults, **_mapping(search, f"{source}: searches.{name}")}
        for name, search in searches.items()
    }
    return parse_config(Settings, values, source)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A part of a file; nothing after a name stands for an empty one."""
    if not isinstance(value or {}, Mapping):
        raise UserError(f"{where} = {value!r}: not a mapping of settings")
    return value or {}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a mapping of settings")
    return values
