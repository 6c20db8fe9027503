"""What an ingest is asked for."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from adu import storage
from adu.config import StrictModel
from adu.data.images import cores
from pipeline.ingestion.layouts import Layout

PSEUDO = re.compile(r"pseudo:([2-9]|[1-9][0-9])")
THREADS_PER_CORE = 2
STORE_THREADS = 16

# In the place of a cluster's address: this machine.
LOCAL = "local"


class IngestConfig(StrictModel):
    """Write a manifest of a folder or bucket of images."""

    source: str = Field(description="folder or URL of the images; the file for layout listing")
    out: str = Field(description="folder or URL of the manifest to write")
    layout: Layout = Field(
        "domain_class",
        description="domain_class: DOMAIN/CLASS/FILE; split_files: lists DOMAIN_train.txt and "
        "DOMAIN_test.txt of 'path label'; imagenet_sketch: folders by WordNet id; vlcs: "
        "DOMAIN/SPLIT/NUMBER/FILE; visda: train, validation, test; listing: CSV or Parquet with "
        "path, class, domain and perhaps split",
    )
    splits: str | None = Field(None, description="split_files: folder of the lists in the source")
    sketch_source: str | None = Field(
        None, description="imagenet_sketch: the sketches, if they do not lie in the source"
    )
    class_names: str | None = Field(
        None, description="imagenet_sketch: file of 'wnid name'; unset: CLIP's names of the 1,000"
    )
    allow_uri: tuple[str, ...] = Field(
        (), description="listing: where images may lie beside below its folder: URI prefixes"
    )
    domains: str | None = Field(
        None,
        description="pseudo:K: images without a domain get one of K, by style: those that are "
        "labelled, and style-0, ...; where all have one, it is compared; unset: as the layout says",
    )
    backbone: str | None = Field(
        None, description="pseudo domains: the model whose features tell styles, named as elsewhere"
    )
    classes: Literal["same", "intersection"] = Field(
        "same", description="intersection: leave out the classes that a domain lacks"
    )
    name: str | None = Field(None, description="name of the data set; unset: the source's")
    test_fraction: float = Field(
        0.5, gt=0, lt=1, description="share set aside for testing, where the layout has no split"
    )
    seed: int = Field(0, ge=0, description="which images are set aside")
    pack: bool = Field(False, description="write the images too, in shards beside the manifest")
    pack_short_side: int | None = Field(
        None, ge=1, description="reduce packed images to this short side; unset: bytes as they are"
    )
    shard_mib: int = Field(256, ge=1, description="size of a shard")
    shots: int = Field(8, ge=1, description="training images that a class should have in a domain")
    val_shots: int = Field(4, ge=1, description="validation images that it should have beside")
    strict: bool = Field(False, description="write nothing if any check finds anything")
    overwrite: bool = Field(False, description="replace a manifest that is already there")
    threads: int | None = Field(
        None,
        ge=1,
        description="images read at a time; unset: 2 a core from files here, 16 from a store",
    )
    address: str | None = Field(
        None,
        description="HOST:PORT or auto of a Ray cluster whose nodes read; local: this machine; "
        "unset: RAY_ADDRESS, else this machine",
    )
    synthetic: bool = Field(False, description="mark the images as made up by a program")

    @field_validator("domains")
    @classmethod
    def _names_a_number(cls, domains: str | None) -> str | None:
        if domains is not None and not PSEUDO.fullmatch(domains):
            raise ValueError("allowed: pseudo:K, with K from 2 to 99")
        return domains

    @model_validator(mode="after")
    def _options_fit(self) -> IngestConfig:
        if self.pack_short_side is not None and not self.pack:
            raise ValueError("pack_short_side needs pack")
        for option, layout in (
            ("splits", "split_files"),
            ("sketch_source", "imagenet_sketch"),
            ("class_names", "imagenet_sketch"),
            ("allow_uri", "listing"),
        ):
            if getattr(self, option) not in (None, ()) and self.layout != layout:
                raise ValueError(f"{option} is for layout {layout}, not {self.layout}")
        if (self.domains is None) != (self.backbone is None):
            raise ValueError("domains pseudo:K and backbone are given together, or neither")
        return self

    @property
    def n_styles(self) -> int | None:
        """How many domains images without one are to fall into; None if all must have one."""
        match = PSEUDO.fullmatch(self.domains or "")
        return int(match[1]) if match else None

    @property
    def n_threads(self) -> int:
        """Images read at a time. Threads that wait for no store get into each other's way."""
        here = storage.is_local(self.source)
        return self.threads or (THREADS_PER_CORE * cores() if here else STORE_THREADS)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two ingests to one place the same, so that one may go on with the other."""
        no_part = {"classes", "name", "shots", "val_shots", "strict", "overwrite", "threads"}
        no_part |= {"out", "address", "synthetic", "allow_uri", "domains"}
        return self.model_dump(mode="json", exclude=no_part)
