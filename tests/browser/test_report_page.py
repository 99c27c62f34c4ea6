"""The report's page in a real headless Chromium, at desktop and phone width: sorted, filtered, read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import record, study

from xdit_bench.reporting.page import write_report

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="needs selenium (the dev extra)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt install chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    records = study(sizes=(1024, 4096), splits=((1, 1), (2, 1), (1, 2), (4, 1)))
    records += [record(status="crashed", engine="<script>document.title='owned'</script>", ulysses=2)]
    write_report(records, "demo", folder)
    return folder / "demo/index.html"


@pytest.fixture(scope="module", params=list(SIZES))
def browser(request: pytest.FixtureRequest, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    width, height = SIZES[request.param]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def beside_peers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of two machines and several engines, below a bound: its tables have all their columns."""
    folder = tmp_path_factory.mktemp("peers")
    records = []
    for topology in ("h100_nvlink", "h200_nvlink"):
        for item in study(sizes=(1024, 4096), splits=((1, 1), (2, 1), (1, 2)), steps=4, topology=topology):
            records += [item, *(record(2.0, **{**item.point, "engine": engine, "execution": "compile"})
                                for engine in ("diffusers", "xfuser") if item.status == "ok")]  # fmt: skip
    for item in records:
        item.study = "peers"
        item.memory = {"peak_bytes": 34e9}
    write_report(records, "peers", folder)
    return (folder / "peers/index.html").as_uri()


def rows(browser: Any, table: str) -> list[list[str]]:
    return browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]}-table tbody tr`)].filter(r => !r.hidden)"
        ".map(r => [...r.cells].map(c => c.textContent))",
        table,
    )


def head(browser: Any, table: str, name: str) -> Any:
    buttons = browser.find_elements("css selector", f"#{table}-table thead button")
    return next(button for button in buttons if button.get_attribute("textContent") == name)


def column(browser: Any, table: str, name: str) -> list[str]:
    heads = browser.find_elements("css selector", f"#{table}-table thead button")
    index = [button.get_attribute("textContent") for button in heads].index(name)
    return [row[index] for row in rows(browser, table)]


def test_opens_without_an_error_and_runs_no_text_of_a_record(browser: Any) -> None:
    assert browser.get_log("browser") == []
    assert browser.title == "demo – xdit_bench"


def test_nothing_is_fetched(browser: Any) -> None:
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_the_page_never_scrolls_sideways(browser: Any) -> None:
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner


def test_the_answer_stands_on_the_first_screen(browser: Any) -> None:
    bottom = browser.execute_script("return document.getElementById('answer').getBoundingClientRect().bottom")
    assert bottom < browser.execute_script("return window.innerHeight")


def test_text_in_figures_is_large_enough_to_read(browser: Any) -> None:
    sizes = browser.execute_script(
        "const seen = [...document.querySelectorAll('figure:not(#fig-frontier) svg')].filter(s =>"
        " s.getBoundingClientRect().height > 0 && s.parentElement.getBoundingClientRect().height > 0);"
        "return seen.map(s => [s.closest('figure').id, 7 * s.getBoundingClientRect().width / s.viewBox.baseVal.width])"
    )
    assert {"fig-headline", "fig-speedups", "fig-engines"} <= {name for name, _ in sizes}
    assert not [(name, size) for name, size in sizes if size < 8]


def test_panels_on_a_phone_are_drawn_and_not_blank(browser: Any) -> None:
    areas = browser.execute_script(
        "return [...document.querySelectorAll('#fig-headline .narrow use')].map(u => u.getBBox())"
        ".map(box => box.width * box.height)"
    )
    assert len(areas) >= 2
    on_phone = browser.execute_script("return window.innerWidth") < 640
    assert all(area > 100 for area in areas) if on_phone else not any(areas)


def test_a_click_sorts_by_number_up_and_down(browser: Any) -> None:
    button = head(browser, "points", "Seconds")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", button)
    button.click()
    up = column(browser, "points", "Seconds")
    numbers = [float(text.split()[0]) for text in up if text != "–"]
    assert numbers == sorted(numbers)
    assert up[len(numbers) :] == ["–"] * (len(up) - len(numbers))
    assert len(numbers) < len(up)
    button.click()
    down = column(browser, "points", "Seconds")
    assert [float(text.split()[0]) for text in down if text != "–"] == numbers[::-1]
    assert down[-1] == "–"
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"


def test_the_keyboard_sorts_too(browser: Any) -> None:
    button = head(browser, "best", "GPUs")
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys("\ue007")
    counts = [int(text) for text in column(browser, "best", "GPUs")]
    assert counts == sorted(counts)
    assert len(set(counts)) > 1


def test_typing_filters_rows_and_says_how_many(browser: Any) -> None:
    field = browser.find_element("css selector", "input[data-table='points-table']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    everything = len(rows(browser, "points"))
    field.send_keys("oom 4096px")
    found = rows(browser, "points")
    assert 0 < len(found) < everything
    assert all("OOM" in row and "4096px" in row for row in found)
    assert browser.find_element("id", "points-count").text == f"{len(found)} of {everything} rows"
    field.clear()
    field.send_keys(" ")
    assert len(rows(browser, "points")) == everything


def test_failures_are_shown_with_reason_and_as_text(browser: Any) -> None:
    text = " ".join(" ".join(row) for row in rows(browser, "failures"))
    assert "asked for 17.2 GB and 9.0 GB were free" in text
    assert "<script>" in text


def test_light_and_dark_differ_and_figures_follow(browser: Any) -> None:
    seen = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        seen.append(browser.execute_script(
            "const text = document.querySelector('#fig-headline .wide svg text');"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]"
        ))  # fmt: skip
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_every_control_has_a_name_and_images_an_alternative(browser: Any) -> None:
    unnamed = browser.execute_script(
        "const named = e => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length"
        " || (e.tagName === 'BUTTON' && e.textContent.trim()) || (e.tagName === 'SECTION' && e.querySelector('h2'));"
        "return [...document.querySelectorAll('button, input, [role=img], [role=region], section')]"
        ".filter(e => !named(e)).length"
    )
    assert unnamed == 0


def test_the_deciding_columns_stand_in_the_window_and_what_is_wider_says_so(browser: Any, beside_peers: str) -> None:
    home = browser.current_url
    browser.get(beside_peers)
    try:
        found = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].map(s => {"
            "s.style.contentVisibility = 'visible'; const style = getComputedStyle(s), box = s.getBoundingClientRect();"
            "return [s.firstElementChild.id, s.scrollWidth - s.clientWidth, box.left, innerWidth - box.right,"
            " style.backgroundImage.split('linear-gradient').length - 1, style.backgroundAttachment]})"
        )
        wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    finally:
        browser.get(home)
    assert wide <= inner
    beyond = {name: over for name, over, *_ in found}
    assert {"best-table", "peers-table", "points-table"} <= set(beyond)
    if inner >= 1280:
        assert beyond["best-table"] <= 0
        assert beyond["peers-table"] <= 0
    for _, _, left, right, shadows, attached in found:
        assert 0 <= left < 20, "the room of the window, not of the text alone"
        assert 0 <= right < 20
        assert (shadows, attached) == (4, "local, local, scroll, scroll"), "a shadow at the edge that hides columns"
