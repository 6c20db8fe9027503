"""Layouts: what each data set's folders say, and the quirks of the published ones."""

import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adu.data.listing import plain_name
from adu.errors import UserError
from pipeline.ingestion.layouts import imagenet_class_names
from pipeline.ingestion.listing import Found, common_classes
from tests.pipeline.ingestion.listed import cells_of, drawn, found_in


def find_images(*arguments, **options):
    return found_in(*arguments, **options)[0]


def touch(root, *paths):
    """Makes files; a layout opens none, so they need not be images."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def told(images):
    return {image.image_id: (image.domain, image.class_, image.split) for image in images}


def refused(message, *arguments, **options):
    with pytest.raises(UserError, match=message):
        find_images(*arguments, **options)


def test_office_home_is_spelt_in_one_way(tmp_path):
    touch(
        tmp_path,
        "Art/Alarm_Clock/00001.jpg",
        "Clipart/Alarm Clock/00001.JPG",
        "Product/alarm_clock/00001.png",
        "Real World/ALARM_CLOCK/00001.jpeg",
        "Real World/TV/00002.jpg",
        "Art/Mop/00007.jpg",
        "README.txt",
    )
    assert told(find_images(str(tmp_path), "domain_class")) == {
        "Art/Alarm_Clock/00001.jpg": ("art", "alarm_clock", None),
        "Art/Mop/00007.jpg": ("art", "mop", None),
        "Clipart/Alarm Clock/00001.JPG": ("clipart", "alarm_clock", None),
        "Product/alarm_clock/00001.png": ("product", "alarm_clock", None),
        "Real World/ALARM_CLOCK/00001.jpeg": ("real_world", "alarm_clock", None),
        "Real World/TV/00002.jpg": ("real_world", "tv", None),
    }


def test_spellings_that_differ_in_a_hyphen_are_one_class(tmp_path):
    touch(tmp_path, "a/T-Shirt/1.png", "b/t-shirt/1.png", "c/t_shirt/1.png")
    assert {image.class_ for image in find_images(str(tmp_path), "domain_class")} == {"t-shirt"}


@pytest.mark.parametrize(
    ("text", "plain"),
    [("Real World", "real_world"), ("_The__Mona Lisa ", "the_mona_lisa"), ("t-shirt", "t-shirt")],
)
def test_plain_names(text, plain):
    assert plain_name(text) == plain


def test_uris_lead_to_the_files(tmp_path):
    touch(tmp_path, "a/x/1.png", "b/x/1.png")
    for url in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        uris = [image.uri for image in find_images(url, "domain_class")]
        assert uris == [f"{tmp_path}/a/x/1.png", f"{tmp_path}/b/x/1.png"]
    fsspec.filesystem("memory").put(str(tmp_path), "/layout-uris", recursive=True)
    image = find_images("memory://layout-uris", "domain_class")[0]
    assert fsspec.open(image.uri).open().read() == b"x"
    assert image.n_bytes == 1


def domainnet(root, folder="splits_mini"):
    """Mini DomainNet's layout: painting lacks t-shirts, as DomainNet's does."""
    lists = {
        "clipart_train": ["clipart/The_Mona_Lisa/c_1.jpg 0", "clipart/t-shirt/c 2.jpg 1"],
        "clipart_test": ["clipart/The_Mona_Lisa/c_3.jpg 0", "", "clipart/t-shirt/c_4.jpg 1"],
        "painting_train": ["painting/The_Mona_Lisa/p_1.jpg 0"],
        "painting_test": ["painting/the_mona_lisa/p_2.jpg 0"],
    }
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (root / folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("folder", ["splits_mini", "splits", ""])
def test_split_files_say_domain_class_and_split(tmp_path, folder):
    images = find_images(str(domainnet(tmp_path, folder)), "split_files")
    assert told(images) == {
        "clipart/The_Mona_Lisa/c_1.jpg": ("clipart", "the_mona_lisa", "train"),
        "clipart/The_Mona_Lisa/c_3.jpg": ("clipart", "the_mona_lisa", "test"),
        "clipart/t-shirt/c 2.jpg": ("clipart", "t-shirt", "train"),
        "clipart/t-shirt/c_4.jpg": ("clipart", "t-shirt", "test"),
        "painting/The_Mona_Lisa/p_1.jpg": ("painting", "the_mona_lisa", "train"),
        "painting/the_mona_lisa/p_2.jpg": ("painting", "the_mona_lisa", "test"),
    }
    assert images[0].uri == f"{tmp_path}/clipart/The_Mona_Lisa/c_1.jpg"


def test_a_class_that_a_domain_lacks_is_told_or_left_out(tmp_path):
    images = find_images(str(domainnet(tmp_path)), "split_files")
    message = "^domain painting: lacks classes that other domains have: t-shirt .--classes inter"
    with pytest.raises(UserError, match=message):
        common_classes(cells_of(images), "same")
    assert common_classes(cells_of(images), "intersection") == {"the_mona_lisa"}


def test_class_sets_that_differ_are_told_with_the_difference_of_each_domain():
    images = [
        Found(f"{domain}{i}", "", domain, class_)
        for domain, classes in (("a", "xy"), ("b", "xz"), ("c", "xyz"))
        for i, class_ in enumerate(classes)
    ]
    with pytest.raises(UserError, match="domain a: lacks .* have: z; domain b: lacks .* have: y"):
        common_classes(cells_of(images), "same")
    with pytest.raises(UserError, match="no class in common"):
        common_classes(cells_of([images[1], images[3]]), "intersection")
    with pytest.raises(UserError, match="one domain .a.: at least 2"):
        common_classes(cells_of(images[:2]), "same")


def test_split_files_that_contradict_each_other_are_refused(tmp_path):
    source = str(domainnet(tmp_path))
    (tmp_path / "splits").mkdir()
    shutil.copy(tmp_path / "splits_mini" / "clipart_test.txt", tmp_path / "splits")
    refused("split files in 'splits_mini', 'splits': choose with --splits", source, "split_files")
    assert len(find_images(source, "split_files", splits="splits")) == 2
    refused("no DOMAIN_train.txt .* in other", source, "split_files", splits="other")
    lists = tmp_path / "splits_mini"
    for line, message in (
        ("clipart/t-shirt/c_9.jpg", "line 1: .* is not 'path label'"),
        ("clipart/car/c_9.jpg 0", "label 0 is 'car' here and 'The_Mona_Lisa' elsewhere"),
        ("clipart/t-shirt/c_4.jpg 1", "'clipart/t-shirt/c_4.jpg' is listed twice"),
    ):
        (lists / "sketch_train.txt").write_text(line)
        refused(message, source, "split_files", splits="splits_mini")


TENCH, CRANE, MISSILE = "n01440764", "n03126707", "n04008634"


def test_imagenet_with_sketches_lies_in_folders_by_wordnet_id(tmp_path):
    touch(
        tmp_path,
        f"imagenet/images/train/{TENCH}/{TENCH}_1.JPEG",
        f"imagenet/images/val/{TENCH}/ILSVRC2012_val_1.JPEG",
        f"imagenet-sketch/images/{TENCH}/sketch_0.JPEG",
        f"imagenet/images/train/{CRANE}/{CRANE}_1.JPEG",
        f"imagenet-sketch/train/{CRANE}/sketch_0.JPEG",
    )
    assert told(find_images(str(tmp_path), "imagenet_sketch")) == {
        f"imagenet/images/train/{TENCH}/{TENCH}_1.JPEG": ("photo", "tench", "train"),
        f"imagenet/images/val/{TENCH}/ILSVRC2012_val_1.JPEG": ("photo", "tench", "test"),
        f"imagenet-sketch/images/{TENCH}/sketch_0.JPEG": ("sketch", "tench", None),
        f"imagenet/images/train/{CRANE}/{CRANE}_1.JPEG": ("photo", "construction crane", "train"),
        # "train" names the whole of ImageNet-Sketch in some copies: its split is drawn here.
        f"imagenet-sketch/train/{CRANE}/sketch_0.JPEG": ("sketch", "construction crane", None),
    }


def test_sketches_may_lie_elsewhere(tmp_path):
    touch(tmp_path / "in", f"train/{TENCH}/1.JPEG", f"val/{TENCH}/2.JPEG")
    touch(tmp_path / "sk", f"{TENCH}/1.JPEG")
    images = find_images(
        str(tmp_path / "in"), "imagenet_sketch", sketch_source=str(tmp_path / "sk")
    )
    assert told(images)[f"sketch/{TENCH}/1.JPEG"] == ("sketch", "tench", None)
    assert images[0].uri == f"{tmp_path}/sk/{TENCH}/1.JPEG"


def test_class_names_are_those_of_clip_and_no_two_are_alike():
    names = imagenet_class_names()
    assert len(set(names.values())) == len(names) == 1000
    assert (names[TENCH], names[MISSILE]) == ("tench", "projectile")


def test_class_names_from_a_file(tmp_path):
    touch(tmp_path / "in", f"train/{TENCH}/1.JPEG", "train/n99999999/1.JPEG")
    names = tmp_path / "names.txt"
    source = str(tmp_path / "in")
    refused("class n99999999 has no name .--class-names FILE", source, "imagenet_sketch")
    names.write_text(f"{TENCH} a fish, Tinca tinca\n\nn99999999\tgrey thing\n")
    images = find_images(source, "imagenet_sketch", class_names=str(names))
    assert [image.class_ for image in images] == ["a fish", "grey thing"]
    for text, message in (
        ("tench", "line 1: 'tench' is not 'wnid name'"),
        (f"{TENCH} fish\nn99999999 fish", "line 2: 'fish' names two classes"),
    ):
        names.write_text(text)
        refused(message, source, "imagenet_sketch", class_names=str(names))


def test_images_that_are_not_in_folders_by_wordnet_id_are_refused(tmp_path):
    touch(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")
    refused("does not lie in a folder named by a WordNet id", str(tmp_path), "imagenet_sketch")


def test_office_31_lies_as_it_is_unpacked_or_as_dassl_wants_it(tmp_path):
    touch(
        tmp_path,
        "amazon/images/back_pack/frame_0001.jpg",
        "dslr/images/back_pack/frame_0001.jpg",
        "webcam/back_pack/frame_0001.jpg",
    )
    assert told(find_images(str(tmp_path), "domain_class")) == {
        "amazon/images/back_pack/frame_0001.jpg": ("amazon", "back_pack", None),
        "dslr/images/back_pack/frame_0001.jpg": ("dslr", "back_pack", None),
        "webcam/back_pack/frame_0001.jpg": ("webcam", "back_pack", None),
    }
    touch(tmp_path, "amazon/pictures/back_pack/frame_0002.jpg")
    refused("does not lie as domain/class/file", str(tmp_path), "domain_class")


def test_vlcs_of_dassl_has_classes_by_number_and_its_training_side_twice(tmp_path):
    touch(
        tmp_path,
        "CALTECH/train/0/train_imgs_1.jpg",
        "CALTECH/crossval/4/crossval_imgs_1.jpg",
        "CALTECH/test/3/test_imgs_1.jpg",
        "CALTECH/full/0/train_imgs_1.jpg",
        "CALTECH/full/4/crossval_imgs_1.jpg",
        # Copies from which the parts were removed.
        "PASCAL/full/1/train_imgs_1.jpg",
        "SUN/full/2/train_imgs_1.jpg",
        "SUN/test/2/test_imgs_1.jpg",
    )
    images, left_out = found_in(str(tmp_path), "vlcs")
    assert told(images) == {
        "CALTECH/train/0/train_imgs_1.jpg": ("caltech", "bird", "train"),
        "CALTECH/crossval/4/crossval_imgs_1.jpg": ("caltech", "person", "train"),
        "CALTECH/test/3/test_imgs_1.jpg": ("caltech", "dog", "test"),
        "PASCAL/full/1/train_imgs_1.jpg": ("pascal", "car", None),
        "SUN/full/2/train_imgs_1.jpg": ("sun", "chair", "train"),
        "SUN/test/2/test_imgs_1.jpg": ("sun", "chair", "test"),
    }
    # A folder that is left out is one entry.
    assert [(each.check, each.name) for each in left_out] == [("unused", "CALTECH/full")]


@pytest.mark.parametrize("path", ["SUN/bird/1.jpg", "SUN/train/5/1.jpg", "SUN/val/0/1.jpg"])
def test_what_is_no_vlcs_of_dassl_is_refused(tmp_path, path):
    touch(tmp_path, path)
    message = f"'{path}' does not lie as domain/split/class/file .* class: 0 to 4"
    refused(message, str(tmp_path), "vlcs")


def visda(root):
    touch(
        root,
        # A class is called train as well.
        "train/train/src_1_02691156_0__0_0_0.png",
        "train/image_list.txt",
        "validation/train/175483.jpg",
        "validation/image_list.txt",
        "test/trunk00/a.jpg",
        "test/trunk01/b.jpg",
    )
    return {
        "train/train/src_1_02691156_0__0_0_0.png": ("synthetic", "train", None),
        "validation/train/175483.jpg": ("real", "train", None),
    }


def test_visda_has_two_domains_without_the_labels_of_its_test_images(tmp_path):
    expected = visda(tmp_path)
    images, left_out = found_in(str(tmp_path), "visda")
    assert told(images) == expected
    unused = [(each.name, each.reason) for each in left_out if each.check == "unused"]
    assert unused == [("test", "folder test: has no labels (test/image_list.txt)")]


def test_visda_has_a_third_domain_with_them(tmp_path):
    expected = visda(tmp_path)
    labels = tmp_path / "test" / "image_list.txt"
    labels.write_text("trunk00/a.jpg 10\ntrunk02/gone.jpg 0\n")
    images, left_out = found_in(str(tmp_path), "visda")
    assert told(images) == expected | {
        "test/trunk00/a.jpg": ("video", "train", None),
        # It is told when it is read.
        "test/trunk02/gone.jpg": ("video", "aeroplane", None),
    }
    assert [each.name for each in left_out if each.check == "unused"] == ["test/trunk01/b.jpg"]
    labels.write_text("trunk00/a.jpg 12\n")
    refused("test/image_list.txt, line 1: label 12 is no class", str(tmp_path), "visda")
    touch(tmp_path, "other/bus/1.jpg")
    labels.write_text("trunk00/a.jpg 1\n")
    refused("'other/bus/1.jpg' does not lie as train/class/file", str(tmp_path), "visda")


LISTED = {
    "path": ["a/1.jpg", "s3://elsewhere/2.jpg", "/data/3.jpg", "a/4.jpg"],
    "class": ["007", "Big Dog", "007", "big_dog"],
    "domain": ["Photo", "photo", "Sketch", "sketch"],
    "split": ["train", "Test", None, "val"],
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_listing_says_it_all(tmp_path, kind):
    file = tmp_path / f"images.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(LISTED), file)
    else:
        rows = zip(*LISTED.values(), strict=True)
        lines = [",".join(LISTED), *(",".join(value or "" for value in row) for row in rows)]
        file.write_text("\n".join(lines))
    images = find_images(str(file), "listing", allow_uri=("s3://elsewhere", "/data"))
    assert [(i.uri, i.domain, i.class_, i.split) for i in images] == [
        ("/data/3.jpg", "sketch", "007", None),
        (f"{tmp_path}/a/1.jpg", "photo", "007", "train"),
        (f"{tmp_path}/a/4.jpg", "sketch", "big_dog", "test"),
        ("s3://elsewhere/2.jpg", "photo", "big_dog", "test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na,b", "lacks the column domain"),
        ("path,class,domain\na,,b", "row 1: has no class"),
        ("path,class,domain,split\na,b,c,hold out", "row 1: split 'hold out' is not train or test"),
        ("path,class,domain\na,b,c\na,b,d", "'a' is listed twice"),
        ("path,class,domain\n", "has no images"),
    ],
)
def test_a_listing_that_lacks_something_is_refused(tmp_path, text, message):
    (tmp_path / "images.csv").write_text(text)
    refused(message, str(tmp_path / "images.csv"), "listing")


def test_what_is_no_listing_is_refused(tmp_path):
    refused("no such file", str(tmp_path / "images.csv"), "listing")
    (tmp_path / "images.parquet").write_bytes(b"path,class,domain")
    refused("is neither CSV nor Parquet", str(tmp_path / "images.parquet"), "listing")


def test_the_drawn_split_does_not_depend_on_order_and_leaves_given_ones_alone():
    images = [Found(f"{i}", "", "a", "x") for i in range(20)]
    images += [Found(f"given{i}", "", "a", "x", "test") for i in range(3)]
    there, back = (drawn(its, 0.25, 0) for its in (images, images[::-1]))
    assert sorted(there, key=str) == sorted(back, key=str)
    assert sum(image.split == "test" for image in there) == 5 + 3
    assert told(there) != told(drawn(images, 0.25, 1))
    # Had one never been there, no other one would go from testing to training.
    test = [image for image in there if image.split == "test"]
    fewer = told(drawn(images[1:], 0.25, 0))
    assert all(fewer[image.image_id][2] == "test" for image in test if image.image_id != "0")
