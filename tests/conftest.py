"""Fixtures of several test files: a browser, an exported page in it without a network, and groups of processes."""

import pytest
from browser import chromium
from two_processes import group


@pytest.fixture(scope='module')
def browser():
    pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
    with chromium() as b:
        yield b


@pytest.fixture
def open_page(browser, tmp_path):
    "Open the exported page of an explorer with the network off; afterwards nothing was asked for and nothing went wrong."
    context = browser.new_context(
        viewport=dict(width=1000, height=900), offline=True, reduced_motion='reduce'
    )
    page, asked, wrong = context.new_page(), [], []
    page.set_default_timeout(15_000)
    page.on('request', lambda r: asked.append(r.url))
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)

    def open_it(explorer):
        explorer.to_html(tmp_path / 'page.html')
        page.goto((tmp_path / 'page.html').as_uri())
        page.wait_for_selector('.vsl')
        return page

    yield open_it
    context.close()
    assert not wrong and all(url.startswith('file:') for url in asked) and len(asked) <= 1


@pytest.fixture(scope='module')
def two():
    with group(2) as g:
        yield g


@pytest.fixture(scope='module')
def three():
    with group(3) as g:
        yield g
