"""1,000 trials in 62 studies are of use in MLflow's UI: filtered, compared, told apart."""

from __future__ import annotations

import itertools
import time
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from optuna.storages import InMemoryStorage
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from pipeline.names import forget_name
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.server import EXPERIMENT_TAGS, NOTE_TAG, Server, artifacts_of
from tests.browser import browser, wait_for_text
from tests.mlflow_server import mlflow_server
from tests.pipeline.tracking import made_up

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
FORGETS = [each for size in range(1, 6) for each in itertools.combinations(DOMAINS, size)]
TRIALS = 17
PATIENCE_S = 180

# As the experiment's own note says.
CONFIGURATIONS = "tags.stage != 'trial' AND tags.level = 'configuration'"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A server that holds the search, and the id of its experiment."""
    folder = tmp_path_factory.mktemp("ui")
    truth = made_up.search_output(
        folder / "out", FORGETS, TRIALS, storage=InMemoryStorage(), domains=DOMAINS
    )
    # Straight into the database: it is not the writing that is looked at here.
    uri = f"sqlite:///{folder / 'server.db'}"
    assert artifacts_of(uri, "made-up") is not None
    mirror = Mirror(Server(uri), truth)
    mirror.sync()
    with mlflow_server(folder) as server:
        yield server.url, mirror.experiment


@pytest.mark.timeout(3000)
def test_trials_are_told_apart_filtered_and_compared(shown, tmp_path):
    url, experiment = shown
    client = MlflowClient(url)
    studies = client.search_runs([experiment], "tags.level = 'study'", max_results=100)
    assert len(studies) == len(FORGETS)
    trials = "tags.stage = 'trial' AND tags.level = 'configuration'"
    found = client.search_runs([experiment], trials, max_results=5000)
    assert len(found) == len(FORGETS) * TRIALS
    assert len({run.info.run_name for run in found}) == len(found), "two trials have one name"
    forget = forget_name(FORGETS[-1])
    wanted = f"{CONFIGURATIONS} AND tags.forget = '{forget}'"
    assert CONFIGURATIONS in EXPERIMENT_TAGS[NOTE_TAG]
    with browser(tmp_path) as page:
        page.get(f"{url}/#/experiments/{experiment}/runs?searchFilter={quote(wanted)}")
        text = wait_for_text(page, f"forget {forget}", "matching runs", timeout_s=PATIENCE_S)
        assert "Request error" not in text
        click_through_compare(page, f"forget {forget}")
        text = wait_for_text(page, "Parallel Coordinates Plot", "test/h", timeout_s=PATIENCE_S)
        assert "Comparing 3 Runs" in text
        page.save_screenshot(str(tmp_path / "compare.png"))


def click_through_compare(page: Chrome, study: str) -> None:
    """Opens a study's row, ticks the runs below it, and presses Compare."""
    name = page.find_element(By.XPATH, f"//a[contains(., '{study}')]")
    name.find_element(By.XPATH, "./preceding::button[1]").click()
    boxes = wait_for_elements(page, "[role=row][row-id] input.ag-checkbox-input", at_least=4)
    # The first is the study's own.
    for box in boxes[1:]:
        box.click()
    buttons = wait_for_elements(page, "button")
    next(button for button in buttons if button.text == "Compare").click()


def wait_for_elements(page: Chrome, selector: str, at_least: int = 1) -> list[WebElement]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := page.find_elements(By.CSS_SELECTOR, selector)) < at_least:
        assert time.monotonic() < deadline, f"{selector}: {len(found)}"
        time.sleep(0.3)
    return found
