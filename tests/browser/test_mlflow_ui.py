"""A sweep in the MLflow UI, viewed in a real browser."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import CHROMIUM, TakeScreenshot
from tests.browser.finished_sweep import FinishedSweep, Job

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser").expect
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]

NAME, STARTED = "attributes.`Run Name`", "runDateAndNestInfo"
LR, BATCH_SIZE, BEST = "params.`optimizer.lr`", "params.`loader.batch_size`", "metrics.`best/mean_iou`"


def open_runs(page: "Page", sweep: FinishedSweep) -> None:
    """Open the list of all runs of the experiment."""
    page.goto(f"/#/experiments/{sweep.experiment_id}/runs")
    expect(page.get_by_text(re.compile(r"^\d+ matching runs?$"))).to_be_visible()
    page.get_by_role("button", name="Toggle sidebar").click()


def open_run(page: "Page", sweep: FinishedSweep, run_id: str, tab: str = "") -> None:
    page.goto(f"/#/experiments/{sweep.experiment_id}/runs/{run_id}{tab}")
    expect(page.get_by_role("tab", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Toggle sidebar").click()


def type_filter(page: "Page", filter_string: str, count: int) -> None:
    box = page.get_by_test_id("search-box")
    box.fill(filter_string)
    box.press("Enter")
    expect(page.get_by_text(re.compile(rf"^{count} matching runs?$"))).to_be_visible()


def choose_columns(page: "Page", names: Sequence[str]) -> None:
    """Toggle columns."""
    page.get_by_role("button", name="Columns", exact=True).click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        page.get_by_test_id("column-selector-tree").get_by_text(name, exact=True).click()
    page.keyboard.press("Escape")


def sort_by(page: "Page", name: str) -> None:
    page.get_by_test_id("sort-select-dropdown").click()
    page.get_by_placeholder("Search", exact=True).fill(name)
    page.get_by_role("menuitemcheckbox", name=name).click()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("sort-select-dropdown")).to_contain_text(name)


def cell(page: "Page", row: int, column: str) -> "Locator":
    return page.locator(f'[role=row][row-index="{row}"] [col-id="{column}"]')


def expect_names(page: "Page", jobs: Sequence[Job]) -> None:
    """Expect exactly these jobs in this order."""
    for row, job in enumerate(jobs):
        expect(cell(page, row, NAME).get_by_role("link")).to_have_text(job.name)
    expect(cell(page, len(jobs), NAME)).to_have_count(0)


def digits(value: float) -> str:
    """Return the leading digits of a number, which the UI may truncate."""
    return str(value)[:7]


def test_table_ranks_the_jobs_of_the_sweep(page: "Page", sweep: FinishedSweep, take_screenshot: TakeScreenshot) -> None:
    open_runs(page, sweep)
    type_filter(page, f"tags.sweep = '{sweep.sweep_id}'", count=5)
    choose_columns(page, ["Dataset", "Source", "Models", "optimizer.lr", "loader.batch_size", "best/mean_iou"])
    sort_by(page, "best/mean_iou")

    ranking = [*sweep.finished, *sweep.failed]
    expect_names(page, ranking)
    for row, job in enumerate(ranking):
        expect(cell(page, row, LR)).to_have_text(job.lr)
        expect(cell(page, row, BATCH_SIZE)).to_have_text(str(job.batch_size))
        expect(cell(page, row, BEST)).to_contain_text(digits(job.best) if job in sweep.finished else "-")
    expect(page.get_by_role("link", name=f"sweep {sweep.sweep_id}")).to_have_count(0)

    page.set_viewport_size({"width": 1200, "height": 480})
    for column in (BATCH_SIZE, BEST):  # fit the width to the name
        page.locator(f'.ag-header-cell[col-id="{column}"] .ag-header-cell-resize').dblclick()
    take_screenshot("mlflow_runs")


def test_failed_job_is_marked(page: "Page", sweep: FinishedSweep) -> None:
    open_runs(page, sweep)
    type_filter(page, f"tags.sweep = '{sweep.sweep_id}'", count=5)
    sort_by(page, "best/mean_iou")
    expect_names(page, [*sweep.finished, *sweep.failed])
    *finished, failed = [cell(page, row, STARTED).locator("svg").inner_html() for row in range(5)]
    assert len(set(finished)) == 1
    assert failed not in finished, "same icon as that of a finished run"

    type_filter(page, f"tags.sweep = '{sweep.sweep_id}' and attributes.status = 'FAILED'", count=1)
    expect_names(page, sweep.failed)
    cell(page, 0, NAME).get_by_role("link").click()
    expect(page.get_by_text("Failed", exact=True)).to_be_visible()


def test_chart_view_plots_every_validation(page: "Page", sweep: FinishedSweep, take_screenshot: TakeScreenshot) -> None:
    open_runs(page, sweep)
    type_filter(page, f"tags.sweep = '{sweep.sweep_id}'", count=5)
    sort_by(page, "best/mean_iou")
    page.get_by_role("radiogroup").locator("label").nth(1).click()  # list, charts, evaluation
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(cards.filter(has_text="best/mean_iou")).to_be_visible()

    page.get_by_placeholder("Search metric charts").fill("^val/(loss|mean_(acc|iou))")
    for metric in ("val/loss", "val/mean_acc", "val/mean_iou"):
        card = cards.filter(has_text=metric)
        for job in sweep.finished:
            expect(card).to_contain_text(f"{job.name} ({metric})")
        expect(card.locator(".scatterlayer .points path")).to_have_count(sum(job.validations for job in sweep.finished))
    expect(cards).to_have_count(3)
    page.set_viewport_size({"width": 1440, "height": 680})
    take_screenshot("mlflow_chart")


def test_comparison_shows_the_differences(page: "Page", sweep: FinishedSweep, take_screenshot: TakeScreenshot) -> None:
    open_runs(page, sweep)
    type_filter(page, f"tags.sweep = '{sweep.sweep_id}'", count=5)
    sort_by(page, "best/mean_iou")
    expect_names(page, [*sweep.finished, *sweep.failed])
    for row in range(len(sweep.finished)):
        page.locator(f'[role=row][row-index="{row}"]').get_by_role("checkbox", name="row selection").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Comparing 4 Runs")).to_be_visible()

    page.get_by_role("switch", name="Parameters - Show diff only").click()
    for name, values in (
        ("loader.batch_size", [str(job.batch_size) for job in sweep.finished]),
        ("optimizer.lr", [job.lr for job in sweep.finished]),
    ):
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        expect(row.get_by_role("cell")).to_have_text(values)
    parameters = page.get_by_role("table").filter(has=page.get_by_text("optimizer.lr", exact=True))
    expect(parameters.get_by_role("row")).to_have_count(2)

    page.get_by_role("combobox").nth(1).click(force=True)  # metrics
    page.get_by_title("best/mean_iou", exact=True).last.click()
    page.get_by_title("train/loss", exact=True).last.click()
    page.keyboard.press("Escape")
    axes = page.locator(".parcoords .axis-title")
    expect(axes).to_have_text(["loader.batch_size", "optimizer.lr", "best/mean_iou"])
    page.get_by_role("button", name="Run details").click()
    page.set_viewport_size({"width": 1440, "height": 920})
    take_screenshot("mlflow_compare")

    # Navigate by URL: a click would be lost while the page is still being laid out.
    page.goto(f"/{page.get_by_role('link', name='val/mean_iou', exact=True).get_attribute('href')}")
    table = page.get_by_role("table").filter(has_text=sweep.finished[0].name)
    for job in sweep.finished:
        line = table.get_by_role("row").filter(has_text=job.name)
        expect(line.get_by_role("cell").last).to_contain_text(digits(job.best))
    expect(page.locator(".scatterlayer .trace").first).to_be_attached()


def test_run_page_shows_description_and_metrics(
    page: "Page", sweep: FinishedSweep, take_screenshot: TakeScreenshot
) -> None:
    best = sweep.finished[0]
    open_run(page, sweep, best.run_id)
    expect(page.get_by_role("heading", name=best.name)).to_be_visible()
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    page.get_by_text("Show more", exact=True).click()
    note = page.get_by_role("table").filter(has_text="accuracy")
    for name, iou in best.ious.items():
        expect(note.get_by_role("row").filter(has_text=name).get_by_role("cell").nth(1)).to_have_text(percent(iou))
    for metric, value in (("best/mean_iou", best.best), ("val/iou/background", best.ious["background"])):
        line = page.get_by_role("row").filter(has=page.get_by_role("link", name=metric, exact=True))
        expect(line).to_contain_text(digits(value))
    take_screenshot("mlflow_run")


def test_table_artifact_is_shown_as_a_table(page: "Page", sweep: FinishedSweep) -> None:
    best = sweep.finished[0]
    open_run(page, sweep, best.run_id, "/artifacts/tables/val_iou.csv")
    for title in ("class", "iou", "accuracy", "pixels"):
        expect(page.get_by_role("columnheader", name=title)).to_be_visible()
    for name, iou in best.ious.items():
        line = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
        expect(line.get_by_role("cell").nth(1)).to_contain_text(digits(iou) if iou else "0")


@pytest.mark.parametrize("folder", [("plots",), ("plots", "samples")])
def test_image_artifacts_are_shown(page: "Page", sweep: FinishedSweep, folder: tuple[str, ...]) -> None:
    best = sweep.finished[0]
    open_run(page, sweep, best.run_id, "/artifacts")
    for name in folder:
        page.get_by_text(name, exact=True).click()
    for name in sorted(path.name for path in best.folder.joinpath(*folder).glob("*.png")):
        page.get_by_text(name, exact=True).click()
        expect_image(page, f"{'/'.join(folder)}/{name}")


def test_overview_ranks_the_jobs_and_shows_the_filter(page: "Page", sweep: FinishedSweep) -> None:
    open_run(page, sweep, sweep.overview_id)
    expect(page.get_by_role("heading", name=f"sweep {sweep.sweep_id}")).to_be_visible()
    expect(page.get_by_text(f"tags.sweep = '{sweep.sweep_id}'")).to_be_visible()
    page.get_by_text("Show more", exact=True).click()
    rows = page.get_by_role("table").filter(has_text="mean IoU").get_by_role("row")
    for rank, job in enumerate(sweep.finished, 1):
        expect(rows.nth(rank)).to_contain_text(job.name)
        expect(rows.nth(rank)).to_contain_text(percent(job.best))
    for job in sweep.failed:
        expect(rows.filter(has_text=job.name)).to_contain_text("FAILED")

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("sweep.csv", exact=True).click()
    expect(page.get_by_role("columnheader", name="best/mean_iou")).to_be_visible()
    page.get_by_text("plots", exact=True).click()
    for name in ("parallel_coordinates.png", "heat_map.png"):
        page.get_by_text(name, exact=True).click()
        expect_image(page, f"plots/{name}")


def expect_image(page: "Page", path: str) -> None:
    """Expect the selected artifact to be rendered, not only listed."""
    expect(page.get_by_text(path, exact=True)).to_be_visible()
    image = page.locator("img[src^=blob]").first
    expect(image).to_be_visible()
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 100


def percent(value: float) -> str:
    return f"{100 * value:.2f}"
