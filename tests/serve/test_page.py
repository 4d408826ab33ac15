"""The page in a real browser: each control, a hostile title, a slow answer, a lost connection."""

import shutil
import socket
import threading
import time

import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="pip install 'llm-influence[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

import uvicorn  # noqa: E402 - after the checks that may skip this file

from llm_influence.data.log import BehaviorLog  # noqa: E402
from llm_influence.modeling.model import InfluenceModel  # noqa: E402
from llm_influence.serve.app import make_app  # noqa: E402
from llm_influence.serve.service import Service  # noqa: E402
from tests import tiny  # noqa: E402

HOSTILE = '<img src=x onerror="document.title=1"> "\'&'


@pytest.fixture(scope="module")
def service():
    titles = tiny.items_table().to_pydict() | {}
    titles["title"][3] = HOSTILE
    log = BehaviorLog.read(tiny.events_table(), items=pa.table(titles), users=tiny.users_table())
    return Service(tiny.moved(InfluenceModel.build(tiny.run_config(), log)).eval(), log)


@pytest.fixture(scope="module")
def address(service):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_app(service), port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    show(page, "u7")
    yield page
    page.close()
    assert problems == []


def settled(page):
    page.wait_for_selector("body:not([aria-busy])")


def show(page, user):
    page.wait_for_selector("#slate li")
    settled(page)
    page.fill("#user", user)
    with page.expect_response("**/what-if"):
        page.click("#who button")
    settled(page)


def titles(page):
    return page.locator("#slate li > span:nth-child(3)").all_inner_texts()


def changed(page, act):
    with page.expect_response("**/what-if") as answer:
        act()
    settled(page)
    return answer.value.json()


def test_the_page_shows_history_list_bars_and_sentence(page, service):
    assert page.locator("#history li").count() == len(service.log["u7"])
    expected = [one.title for one in service.model.recommend(service.log["u7"], 10)]
    assert titles(page) == [" ".join(title.split()) for title in expected]
    assert page.locator("#bars .bar").count() >= 1
    assert page.inner_text("#sentence").startswith("“")
    assert page.locator("#sure li").count() >= 3


def test_an_event_is_switched_off_undone_and_shared(page, browser):
    before = titles(page)
    answer = changed(page, lambda: page.click("#strongest"))
    tidy = [" ".join(one["title"].split()) for one in answer["after"]]
    assert titles(page) == tidy
    assert page.locator("#history li.off").count() == 1
    assert page.inner_text("#says") == answer["says"]
    after = titles(page)
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector("#history li.off")
    settled(other)
    assert titles(other) == after
    other.close()
    changed(page, lambda: page.click("#undo"))
    assert titles(page) == before
    assert page.locator("#history li.off").count() == 0


def test_behaviour_value_time_and_query_time_can_be_changed(page):
    row = page.locator("#history li").first
    changed(page, lambda: row.locator("select").select_option("purchase"))
    moved = row.locator('[type="datetime-local"]')
    changed(page, lambda: (moved.fill("1971-01-01T00:00"), moved.blur()))
    assert page.locator("#history li.changed").count() == 1
    changed(page, lambda: (page.fill("#now", "1972-01-01T00:00"), page.locator("#now").blur()))
    changed(page, lambda: page.click("#reset"))
    assert page.locator("#history li.changed").count() == 0
    assert page.input_value("#now") == ""


def test_an_event_is_added_from_search_and_taken_away(page, service):
    title = service.model.catalogue.titles[9]
    page.fill("#search", title)
    answer = changed(page, lambda: page.click("#add button"))
    assert answer["events"][-1]["item"] == "i9"
    assert title in page.locator("#history li").last.inner_text()
    changed(page, lambda: page.locator("#history li").last.locator("button").click())
    assert page.locator("#history li.changed").count() == 0


def test_the_keyboard_is_enough(page):
    page.focus("#history li input[type=checkbox]")
    changed(page, lambda: page.keyboard.press("Space"))
    assert page.locator("#history li.off").count() == 1
    assert page.evaluate("document.activeElement.type") == "checkbox"


def test_why_not_that(page, service):
    page.fill("#other", service.model.catalogue.titles[12])
    with page.expect_response("**/explain"):
        page.click("#contrast button")
    page.locator("#contrast-sentence", has_text=" over ").wait_for()


def test_what_would_change_it_and_what_keeps_it(page):
    for button, path in (("change", "fewest-to-change"), ("keep", "fewest-to-keep")):
        with page.expect_response(f"**/{path}") as answer:
            page.click(f"#{button}")
        says = answer.value.json()["says"]
        page.locator(f"#{button}-says", has_text=says.split(".")[0]).wait_for()


def test_a_hostile_title_is_a_text(page, service):
    page.fill("#search", "<img")
    changed(page, lambda: page.click("#add button"))
    assert "<img src=x" in page.locator("#history li").last.inner_text()
    assert page.locator("#history img").count() == 0
    assert page.title() == "What if? llm_influence"


def test_a_slow_answer_says_so_and_a_newer_one_wins(page):
    def slow(route):
        time.sleep(0.6)
        route.continue_()

    page.route("**/what-if", slow)
    page.locator("#history li input[type=checkbox]").first.click()
    page.locator("#status", has_text="Working").wait_for()
    page.unroute("**/what-if")
    changed(page, lambda: page.locator("#history li input[type=checkbox]").nth(1).click())
    assert page.locator("#history li.off").count() == 2
    assert not page.inner_text("#status").startswith("Working")


def test_a_lost_connection_is_told_and_tried_again(page):
    page.route("**/what-if", lambda route: route.abort())
    page.locator("#history li input[type=checkbox]").first.click()
    page.wait_for_selector("#trouble:not([hidden])")
    assert "does not answer" in page.inner_text("#trouble")
    page.unroute("**/what-if")
    changed(page, lambda: page.click("#trouble button"))
    assert page.locator("#trouble").is_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1600, "dark")])
def test_nothing_is_wider_than_the_screen(browser, address, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector("#slate li")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
