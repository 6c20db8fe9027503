"""Names are data: shown as they are, and rows stay where they may lie."""

import os

import pytest

from adu import storage
from adu.data.manifest import load_manifest
from adu.data.reading import check_images
from adu.errors import UserError
from pipeline.command import plain_console
from pipeline.ingest import main
from tests.pipeline.ingests import check_sums, noise, run

ODD_NAMES = [
    *("[x]", "[bold]", "'quoted' \"twice\"", "50%", "a+b", "a,b", "a:b", "a::b", ":car:", "*", "?"),
    *("写真", "рисунок", "صورة", "👩‍🚀", "café", "back\\slash", "new\nline", "\x1b[31mred", "$(x)"),
    *("~", "-rf", "..hidden", "{class}", "x" * 200, "line\u2028end", "{0}", "%s"),
]


def odd_images(folder, names):
    for d, domain in enumerate(names[:3]):
        for c, class_ in enumerate(names):
            cell = folder / f"d{domain}" / f"c{class_}"
            cell.mkdir(parents=True)
            for i in range(2):
                noise(1000 * d + 10 * c + i).save(cell / f"x{class_[:9]}{i}.png")


def test_any_name_goes_into_the_manifest_as_it_is(tmp_path, capsys):
    odd_images(tmp_path / "[in]", ODD_NAMES)
    out = tmp_path / "m [/x] 50%"
    assert run(tmp_path / "[in]", out, "--shots", "1", "--val-shots", "1") == 0
    manifest = load_manifest(str(out))
    assert manifest.n_images == 3 * len(ODD_NAMES) * 2
    assert manifest.domains == ("d'quoted'_\"twice\"", "d[bold]", "d[x]")
    expected = {f"c{name.replace(chr(10), '_')}".lower() for name in ODD_NAMES}
    assert len(manifest.classes) == len(expected)
    assert {"c[x]", "c[bold]", "ca::b", "c写真", "c:car:", "c\x1b[31mred"} <= set(manifest.classes)
    for uri in manifest.table["uri"].to_pylist():
        assert storage.exists(uri)
    check_images(manifest)
    err = capsys.readouterr().err
    assert "│ d[x] " in err and "│ d[bold] " in err
    assert "\x1b" not in err
    check_sums(out)


def test_a_listing_may_name_domains_that_are_no_file_names(images, tmp_path):
    names = ["../../victim", "..", "x" * 300, ".hidden", "a/b", "_", "CON"]
    lines = ["path,class,domain"]
    files = sorted(images.rglob("*.png"))
    lines += [f"{file},cup,{names[i % len(names)]}" for i, file in enumerate(files)]
    (images / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "deep" / "m"
    assert run(images / "list.csv", out, "--layout", "listing") == 0
    assert load_manifest(str(out)).domains == tuple(sorted(name.lower() for name in names))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"m"}


def test_a_console_shows_names_without_markup_or_emoji():
    assert plain_console(None).render_str("[x] [/x] :car: 50%").plain == "[x] [/x] :car: 50%"


def test_the_tables_show_the_names_as_they_are(images, tmp_path, capsys):
    (images / "photo").rename(images / "[photo]")
    (images / "[photo]" / "cup" / "[x].png").write_bytes(b"")
    assert run(images, tmp_path / "m", "--name", "[bold]set[/x]") == 0
    err = capsys.readouterr().err
    assert "[bold]set[/x]: 36 images" in err
    assert "│ [photo] " in err
    assert "[photo]/cup/[x].png: is empty" in err


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/hostname",
        "/etc/hostname",
        "../../etc/hostname",
        "http://127.0.0.1/x.png",
        "simplecache::s3://bucket/x.png",
        "zip://a::file:///b.zip",
        "s3://elsewhere/x.png",
    ],
)
def test_a_listing_opens_nothing_outside_of_its_folder_unless_allowed(tmp_path, capsys, uri):
    (tmp_path / "list.csv").write_text(f"path,class,domain\n{uri},cup,photo\n")
    assert run(tmp_path / "list.csv", tmp_path / "m", "--layout", "listing") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "row 1: its image" in err and "lies elsewhere (allowed: " in err


def test_allowed_places_are_read_and_the_next_flag_is_told(images, tmp_path, capsys):
    folder = tmp_path / "lists"
    folder.mkdir()
    lines = ["path;class;domain"]
    lines += [f"{f};{f.parent.name};{f.parent.parent.name}" for f in images.rglob("*.png")]
    (folder / "list.csv").write_text("\n".join(lines))
    arguments = ("--layout", "listing", "--allow-uri", str(images))
    assert run(folder / "list.csv", tmp_path / "m", *arguments) == 0
    told = f"images lie in {images}: use it with --context.data.allow-uri {images}"
    assert told in capsys.readouterr().err
    manifest = load_manifest(str(tmp_path / "m"))
    with pytest.raises(UserError, match="lies elsewhere"):
        check_images(manifest)


@pytest.mark.parametrize("source", [".", "../images"])
def test_a_relative_source_is_known_from_elsewhere(images, tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(images)
    assert main(["--source", source, "--out", "../m"]) == 0
    assert "use it with" not in capsys.readouterr().err
    monkeypatch.chdir("/")
    manifest = load_manifest(str(tmp_path / "m"))
    assert manifest.name == "images"
    assert os.path.normpath(manifest.source) == str(images)
    check_images(manifest)
