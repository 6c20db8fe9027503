"""The report: it opens with the answer, needs no network and no MLflow, and stays readable."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest

from pipeline.report import main
from pipeline.results.embedded import embedded
from pipeline.results.page import answer
from tests.pipeline.tracking.made_up import picture, search_output

MODEL = {
    "name": "made-up-without-sketch",
    "version": "2",
    "is_best": False,
    "reason": "version 1 has a mean H of 90.0 %",
    "uri": "models:/made-up-without-sketch/2",
    "registry": "http://host",
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The output of a search of two forget sets; one has a registered model."""
    folder = tmp_path_factory.mktemp("report") / "out"
    proof = {"verdict": "Suppressed, not forgotten: it is back after 20 steps.", "distance": 0.4}
    search_output(folder, [("sketch",), ("[photo] 50%",)], trials=8, proof=proof)
    (folder / "studies" / "sketch" / "model.json").write_text(json.dumps(MODEL))
    (folder / "figures.csv").write_text("forget,stage\n")
    return folder


@pytest.fixture(scope="module")
def page(searched):
    assert main(["--output", str(searched)]) == 0
    return (searched / "report.html").read_text()


def test_the_page_opens_with_what_was_forgotten_and_at_what_cost(page):
    overview, sketch = page.index('id="overview"'), page.index('id="study-sketch"')
    assert overview < sketch < page.index("<img")
    for text in (
        "Forgotten: 80.5 % of the test images of sketch are no longer recognised (14.0 % before)",
        "Cost: of the images to keep, 90.0 % are recognised (90.0 % before)",
        "2 of 2 forget sets have a tested model; their mean H is 85.0 %",
        "The search beat the paper&#39;s defaults on 2",
        "How sure: the search beat the paper&#39;s defaults",
        "points of H on test images, seed by seed (2 seeds)",
        "made-up-without-sketch, version 2 in http://host. It is not @best: version 1 has a mean",
        'mlflow.pyfunc.load_model("models:/made-up-without-sketch/2")',
        "python pipeline/train.py --config studies/",
        "6 complete, 1 stopped early, 1 failed",
        "sketch (forget)",
        "The images are synthetic",
        "Pareto front",
        "Parallel coordinates",
        "Learning curves",
        "fANOVA",
        "Features of test images",
        "Attacked: Suppressed, not forgotten: it is back after 20 steps.",
    ):
        assert text in page, text


def test_the_page_is_whole_and_its_links_lead_somewhere(page, searched):
    assert page.count("<img") == 2 * 5
    assert 'src="http' not in page and "<link" not in page
    links = [unquote(part.split('"')[0]) for part in page.split('href="')[1:]]
    files = [link for link in links if not link.startswith("#")]
    known = {"figures.csv", "tracking.json", "studies/sketch/configs/best.yaml"}
    assert known | {"studies/sketch/evidence.html"} <= set(files)
    for file in files:
        assert (searched / file).exists(), file
    anchors = [link[1:] for link in links if link.startswith("#")]
    assert len(anchors) == 2
    for anchor in anchors:
        assert f'id="{anchor}"' in page


@pytest.mark.parametrize("n_pictures", [1, 7 * 62])
def test_pictures_are_reduced_as_far_as_it_takes(n_pictures):
    assert len(embedded(picture(), n_pictures)) * n_pictures < 20_000_000


def test_a_study_without_a_tested_model_says_so():
    assert answer("sketch", [], []) == ["There is no tested model that has forgotten sketch yet."]


def test_an_output_that_is_no_search_is_refused(tmp_path, capsys):
    assert main(["--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert "has no tracking.json" in line and line.count("\n") == 1
