"""Opens a report (ddpm report) in headless Chromium: no error on its console, the scrubber and the sample slider move, the chart shows values.

    python tests/parity/check_report.py REPORT.html [SCREENSHOT_PREFIX]

Needs playwright (pip install playwright) and a Chromium, CHROMIUM=/usr/bin/chromium. Screenshots: wide, phone, dark.
"""
import os
import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

report = pathlib.Path(sys.argv[1]).resolve().as_uri()
prefix = sys.argv[2] if len(sys.argv) > 2 else None
chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
problems, requests = [], []


def pixels(page):
    return page.eval_on_selector(".scrubber canvas", "c => c.toDataURL()")


def move(page, selector, value):
    page.eval_on_selector(selector, "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def check(page):
    page.goto(report)
    page.wait_for_load_state("load")
    scrubber = ".scrubber input[type=range]"
    if page.query_selector(scrubber):
        page.wait_for_function("document.querySelector('.scrubber img').complete")
        last = pixels(page)
        move(page, scrubber, 0)
        assert pixels(page) != last, "the scrubber's picture does not change"
    slider = ".samples input[type=range]"
    if page.query_selector(slider) and int(page.get_attribute(slider, "max")) > 0:
        last = page.get_attribute(".samples img", "src")
        move(page, slider, 0)
        assert page.get_attribute(".samples img", "src") != last, "the samples do not change"
    if page.query_selector("figure svg"):
        page.hover("figure svg")
        assert "step" in page.inner_text("figure .tip") or page.query_selector("figure svg rect"), "no values under the cursor"
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    for name, options in {
        "wide": {"viewport": {"width": 1100, "height": 900}},
        "phone": {"viewport": {"width": 380, "height": 800}, "device_scale_factor": 2},
        "dark": {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"},
    }.items():
        page = browser.new_page(**options)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else requests.append(request.url))
        check(page)
        if prefix:
            page.screenshot(path=f"{prefix}{name}.png", full_page=True)
    browser.close()
assert not problems, problems
assert not requests, f"the page asks the network: {requests}"
print("report: no console errors, no network, sliders and charts respond (wide, phone, dark)")
