"""The page of a run in a browser: nothing is requested, nothing complains, and everything works and fits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from made_runs import NAMES, made_run

from layerbounds.report.network_page import page

pytestmark = pytest.mark.slow
#: From Debian's packages chromium and chromium-driver; other systems call the first one otherwise.
BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
#: Luminance contrast that WCAG 2 asks for of texts.
CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser test needs selenium")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which(DRIVER)
    if binary is None or driver is None:
        pytest.skip("the browser test needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    # No name is ever looked up, so that not even a request that this test overlooked leaves the machine.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver, log_output=os.devnull))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    names = [*NAMES, *(f"layer{i}.conv" for i in range(9)), "block." * 30 + "projection"]
    file = folder / "report.html"
    file.write_text(page(made_run(folder, names)), encoding="utf-8")
    return file.as_uri()


def requests(browser: Any) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def emulate(browser: Any, scheme: str, media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column(browser: Any, number: int) -> list[str]:
    """What a column of the table is sorted by, in the rows that are shown."""
    script = """
        return Array.from(document.querySelectorAll("#layers-table tbody tr"), r => r).filter(r => !r.hidden)
            .map(r => r.cells[arguments[0]]).map(c => "value" in c.dataset ? c.dataset.value : c.textContent);
    """
    return list(browser.execute_script(script, number))


def test_page_in_a_browser(browser: Any, address: str) -> None:
    resize(browser, 1280)
    requests(browser)
    browser.get(address)
    assert browser.title == "Certified bounds for a network"
    said = browser.execute_script("return document.querySelector('#layers-table tbody th').textContent")
    assert said == NAMES[0] == '<script>alert("x")</script>'

    # Two columns in both directions: texts by their letters and numbers, numbers by their size, undefined ones last.
    heads = browser.find_elements("css selector", "#layers-table thead th")
    titles = [head.text for head in heads]
    for title, text in (("compression", True), ("upper end, %", False)):
        number = titles.index(title)
        before = column(browser, number)
        for direction in ("ascending", "descending"):
            heads[number].find_element("css selector", "button").click()
            assert [head.get_attribute("aria-sort") for head in heads if head.get_attribute("aria-sort")] == [direction]
            assert heads[number].get_attribute("aria-sort") == direction
            after = column(browser, number)
            assert sorted(after) == sorted(before)
            falling = direction == "descending"
            if text:
                assert after == sorted(before, key=str.lower, reverse=falling)
            else:
                known = sorted((float(value) for value in before if value), reverse=falling)
                assert [float(value) for value in after if value] == known and len(known) > 30
                assert after[len(known) :] == [""] * (len(after) - len(known)) and len(after) > len(known)

    # The filter: all words, anywhere in the row.
    field = browser.find_element("id", "filter")
    assert browser.find_element("css selector", "label[for=filter]").text == "Filter the rows"
    field.send_keys("int4 LAYER3")
    assert column(browser, 0) == ["layer3.conv"] and column(browser, 1) == ["INT4"]
    assert browser.find_element("id", "count").text == "1 of 39 rows"
    field.clear()
    field.send_keys(" ")
    assert browser.find_element("id", "count").text == "39 of 39 rows"

    # Every picture says what it shows.
    silent = browser.execute_script("""
        return Array.from(document.querySelectorAll("img, svg, canvas, object, [role=img]")).filter(e => {
            const said = e.closest("[role=img]") ?? e;
            return e.getAttribute("aria-hidden") !== "true" && !(said.getAttribute("aria-label") || e.alt)
                || (e.tagName === "svg" && !e.closest("[role=img], li, .shapes"));
        }).map(e => e.outerHTML.slice(0, 80));
    """)
    assert silent == []
    assert len(browser.find_elements("css selector", "[role=img]")) == 6

    # Intervals are drawn, the shortest, too.
    widths = browser.execute_script(
        "return Array.from(document.querySelectorAll('.chart .bar'), e => e.getBoundingClientRect().width)"
    )
    assert len(widths) > 60 and min(widths) >= 1.0

    assert [entry for entry in browser.get_log("browser")] == []
    asked = requests(browser)
    assert asked[0] == address and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits(browser: Any, address: str, width: int) -> None:
    resize(browser, width)
    browser.get(address)
    beyond = browser.execute_script("""
        const width = document.documentElement.clientWidth;
        return Array.from(document.querySelectorAll("body *")).filter(e => {
            const scrolls = e.parentElement.closest(".scroll");
            return !scrolls && e.getBoundingClientRect().right > width + 0.5;
        }).map(e => e.tagName + " " + e.textContent.slice(0, 40));
    """)
    assert beyond == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    # Texts of an axis do not touch.
    gaps = browser.execute_script("""
        return Array.from(document.querySelectorAll(".plot"), p => {
            const boxes = Array.from(p.querySelectorAll(".tick"), t => t.getBoundingClientRect()).filter(b => b.width);
            return boxes.slice(1).map((b, i) => b.left - boxes[i].right);
        }).flat();
    """)
    assert min(gaps) > 2.0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable(browser: Any, address: str, scheme: str) -> None:
    resize(browser, 1280)
    emulate(browser, scheme)
    browser.get(address)
    found = browser.execute_script("""
        const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
        const light = c => c.slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = e => {
            for (; e; e = e.parentElement) {
                const c = numbers(getComputedStyle(e).backgroundColor);
                if (c.length === 3 || c[3] > 0) return c;
            }
            return [255, 255, 255];
        };
        const dark = light(ground(document.body)) < 0.2;
        const poor = Array.from(document.querySelectorAll("body *")).filter(e =>
            Array.from(e.childNodes).some(n => n.nodeType === 3 && n.textContent.trim()) && e.tagName !== "title"
            && e.tagName !== "SCRIPT"
        ).map(e => {
            const style = getComputedStyle(e);
            const ink = light(numbers(e instanceof SVGElement ? style.fill : style.color));
            const other = light(ground(e));
            return [(Math.max(ink, other) + 0.05) / (Math.min(ink, other) + 0.05), e.textContent.slice(0, 40)];
        });
        return [dark, Math.min(...poor.map(p => p[0])), poor.length, poor.sort((a, b) => a[0] - b[0])[0][1]];
    """)
    emulate(browser, "light")
    assert found[0] == (scheme == "dark") and found[2] > 100
    assert found[1] >= CONTRAST, found


def test_paper(browser: Any, address: str) -> None:
    resize(browser, 720)
    emulate(browser, "dark", "print")
    browser.get(address)
    width, ground = browser.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    emulate(browser, "light")
    # A4 with usual margins, and never dark.
    assert width <= 720 and ground == "rgb(255, 255, 255)"


def test_without_scripts(browser: Any, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        assert browser.find_elements("css selector", "button") == []
        assert not browser.find_element("id", "tools").is_displayed()
        assert len(browser.find_elements("css selector", "#layers-table tbody tr")) == 39
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
