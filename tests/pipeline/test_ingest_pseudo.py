"""Images without a domain get one by their style; labels are kept, or compared."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from adu.data.manifest import load_manifest
from pipeline.ingest import IngestConfig, ingest
from pipeline.ingestion.encoder import Encoder
from tests.pipeline.ingests import card_of, run
from tests.tiny import DOMAINS, tiny_backbone, tiny_images

PER_CELL = 16


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return str(tiny_backbone(tmp_path_factory.mktemp("model")))


@pytest.fixture
def images(tmp_path):
    return tiny_images(tmp_path / "images", PER_CELL)


def without_domains(images):
    """Moves DOMAIN/CLASS/0.png to CLASS/DOMAIN-0.png."""
    for file in sorted(images.glob("*/*/*.png")):
        domain, class_ = file.parts[-3:-1]
        (images.parent / "plain" / class_).mkdir(parents=True, exist_ok=True)
        file.rename(images.parent / "plain" / class_ / f"{domain}-{file.name}")
    return images.parent / "plain"


def pairs_of(manifest, truth):
    """How many images have each true domain and the one of the manifest."""
    table = load_manifest(str(manifest)).columns(["image_id", "domain"])
    names, domains = (table[name].to_pylist() for name in ("image_id", "domain"))
    return Counter(zip(map(truth, names), domains, strict=True))


def in_file_name(name):
    return Path(name).name.split("-")[0]


def in_folder(name):
    return name.split("/")[0]


def test_images_without_a_domain_fall_into_styles(images, backbone, tmp_path, capsys):
    plain = without_domains(images)
    (plain / "cup" / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "m"
    assert run(plain, out, "--domains", "pseudo:3", "--backbone", backbone) == 0
    assert load_manifest(str(out)).domains == ("style-0", "style-1", "style-2")
    found = pairs_of(out, in_file_name)
    assert sorted(found.values()) == [3 * PER_CELL] * 3 and len({d for d, _ in found}) == 3
    assert card_of(out)["pseudo_domains"] == {
        "domains": ["style-0", "style-1", "style-2"],
        "told_by": f"image features of {backbone} without what their classes add",
        "labels": "kept",
        "agreement": None,
    }
    assert "(pseudo domains); no labels to compare with" in capsys.readouterr().err


def test_where_all_images_have_a_domain_it_is_compared(images, backbone, tmp_path, capsys):
    out, true = tmp_path / "m", tmp_path / "true"
    assert run(images, out, "--domains", "pseudo:3", "--backbone", backbone) == 0
    card = card_of(out)["pseudo_domains"]
    assert (card["labels"], card["agreement"]["images"]) == ("compared", 9 * PER_CELL)
    assert card["agreement"]["ari"] == card["agreement"]["nmi"] == 1
    assert "on 144 labelled images: ARI 1.00, NMI 1.00" in capsys.readouterr().err
    assert {domain for _, domain in pairs_of(out, in_folder)} == {"style-0", "style-1", "style-2"}
    # The same images are set aside for testing as without the option.
    assert run(images, true) == 0
    splits = [load_manifest(str(place)).columns(["image_id", "split"]) for place in (out, true)]
    assert splits[0].equals(splits[1])


def listing_with(images, labelled):
    """A listing in which some images have a domain."""
    file = images / "list.csv"
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "class", "domain"])
        for path in sorted(images.glob("*/*/*.png")):
            domain, class_ = path.parts[-3:-1]
            domain = domain if labelled(domain, int(path.stem)) else ""
            rows.writerow([path.relative_to(images), class_, domain])
    return file


def test_labels_are_kept_and_the_others_are_those_of_the_nearest_style(images, backbone, tmp_path):
    file = listing_with(images, lambda domain, number: number < 2)
    out = tmp_path / "m"
    arguments = ["--layout", "listing", "--domains", "pseudo:3", "--backbone", backbone]
    assert run(file, out, *arguments) == 0
    assert pairs_of(out, in_folder) == {(domain, domain): 3 * PER_CELL for domain in DOMAINS}
    card = card_of(out)["pseudo_domains"]
    # Of six labels of each domain, half were hidden for it.
    assert card["labels"] == "kept" and card["agreement"] == {"images": 9, "ari": 1.0, "nmi": 1.0}


def test_one_domain_may_be_labelled_and_a_wrong_label_stays(images, backbone, tmp_path):
    file = listing_with(images, lambda domain, number: domain == "photo" and number < 4)
    lines = file.read_text().replace("sketch/cup/0.png,cup,", "sketch/cup/0.png,cup,Photo")
    file.write_text(lines)
    out = tmp_path / "m"
    arguments = ["--layout", "listing", "--domains", "pseudo:3", "--backbone", backbone]
    assert run(file, out, *arguments) == 0
    found = pairs_of(out, in_folder)
    assert found["photo", "photo"] == 3 * PER_CELL and found["sketch", "photo"] == 1
    assert {domain for _, domain in found} == {"photo", "style-0", "style-1"}


def test_another_number_of_styles_reads_no_image_again(images, backbone, tmp_path, monkeypatch):
    def asked(n, out):
        places = {"source": str(images), "out": str(tmp_path / out)}
        return IngestConfig(**places, domains=f"pseudo:{n}", backbone=backbone)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.write_manifest", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(asked(2, "m"))
    expected = ingest(asked(3, "undisturbed"))
    monkeypatch.setattr(Encoder, "features", lambda *_: 1 / 0)
    manifest = ingest(asked(3, "m"))
    assert manifest.digest == expected.digest
    assert not list((tmp_path / "m").glob(".unfinished-*"))


def test_what_is_read_together_changes_no_domain(images, backbone, tmp_path):
    options = {"source": str(images), "domains": "pseudo:3", "backbone": backbone}
    loose = ingest(IngestConfig(**options, out=str(tmp_path / "loose")))
    packed = ingest(IngestConfig(**options, out=str(tmp_path / "packed"), pack=True))
    assert loose.digest == packed.digest


def test_a_sample_is_the_same_in_any_order_and_has_rare_classes(monkeypatch):
    import pyarrow as pa

    from pipeline.ingestion import pseudo_domains

    monkeypatch.setattr(pseudo_domains, "SAMPLE_IMAGES", 100)
    n = 2000
    table = pa.table(
        {
            "image_id": [f"{i}" for i in range(n)],
            "domain": [""] * n,
            "class": ["rare" if i % 100 == 0 else "common" for i in range(n)],
            "feature": [b"\0\0"] * n,
        }
    )
    cells = {("", "rare"): 20, ("", "common"): n - 20}
    shuffled = [table.slice(start, 500) for start in (1500, 0, 1000, 500)]
    sample, other = (pseudo_domains._sample(t, cells, True) for t in ([table], shuffled))
    assert sample.equals(other)
    count = Counter(sample["class"].to_pylist())
    assert count["rare"] == 20 and 30 <= count["common"] <= 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--domains", "pseudo:1"], "domains = 'pseudo:1': allowed: pseudo:K, with K from 2 to 99"),
        (["--domains", "pseudo:3"], "domains pseudo:K and backbone are given together"),
        (["--backbone", "demo"], "domains pseudo:K and backbone are given together"),
        (["--domains", "pseudo:3", "--backbone", "no-model"], "backbone 'no-model'"),
    ],
)
def test_what_does_not_fit_is_refused(images, tmp_path, capsys, arguments, message):
    assert run(images, tmp_path / "m", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_more_labels_than_styles_are_refused(images, backbone, tmp_path, capsys):
    file = listing_with(images, lambda domain, number: number < 2)
    arguments = ["--layout", "listing", "--domains", "pseudo:2", "--backbone", backbone]
    assert run(file, tmp_path / "m", *arguments) == 2
    line = capsys.readouterr().err
    assert "'pseudo:2': images are labelled with 3 domains (clipart, photo, sketch)" in line


def test_a_listing_without_domains_says_what_finds_them(images, tmp_path, capsys):
    file = listing_with(images, lambda domain, number: False)
    assert run(file, tmp_path / "m", "--layout", "listing") == 2
    assert "row 1: has no domain (--domains pseudo:K finds one)" in capsys.readouterr().err
