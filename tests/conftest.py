"""What all tests share: seeds, markers, a browser, an exported page in it without a network, and groups of
processes."""

import random

import numpy as np
import pytest
import torch
from browser import CHROMIUM, PATIENCE, chromium
from two_processes import group
from vit_ssl_lab.data import load
from vit_ssl_lab.data.download import DataError

OTHER_MARKERS = {'slow', 'browser', 'notebooks', 'processes', 'gpu'}


def pytest_collection_modifyitems(items):
    """A test that has none of the other markers (pytest.ini) is a unit test.
    A test with the fixtures of processes below needs no marker of its own.
    A test that needs a browser or a GPU is skipped where there is none."""
    no_browser = pytest.mark.skip(reason="there is no Chromium: `make test` installs it")
    no_gpu = pytest.mark.skip(reason="there is no CUDA device")
    for item in items:
        if {'two_processes', 'three_processes'} & set(item.fixturenames):
            item.add_marker('processes')
        names = {marker.name for marker in item.iter_markers()}
        if not names & OTHER_MARKERS:
            item.add_marker('unit')
        if 'browser' in names and CHROMIUM is None:
            item.add_marker(no_browser)
        if 'gpu' in names and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def global_seed():
    """Each test starts from the same state of the global generators, so `torch.rand(3)` in a test is always
    the same."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope='session')
def fashion_mnist():
    "The training pictures; a test that needs them is skipped where they can't be had."
    try:
        return load('fashion-mnist', 'train')
    except DataError:
        pytest.skip("there is no Fashion-MNIST: `make test` gets it")


@pytest.fixture(scope='module')
def browser():
    pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
    with chromium() as b:
        yield b


@pytest.fixture
def open_page(browser, tmp_path):
    """Open the exported page of an explorer without a network; afterwards check what it asked for and that
    nothing went wrong."""
    context = browser.new_context(
        viewport=dict(width=1000, height=900), offline=True, reduced_motion='reduce'
    )
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    requests = []
    errors = []

    def on_console(message):
        if message.type == 'error':
            errors.append(message.text)

    page.on('request', lambda request: requests.append(request.url))
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('console', on_console)

    def open_it(explorer):
        explorer.to_html(tmp_path / 'page.html')
        page.goto((tmp_path / 'page.html').as_uri())
        page.wait_for_selector('.vsl')
        return page

    yield open_it
    context.close()
    assert not errors
    assert all(url.startswith('file:') for url in requests)
    assert len(requests) <= 1


@pytest.fixture(scope='module')
def two_processes():
    with group(2) as g:
        yield g


@pytest.fixture(scope='module')
def three_processes():
    with group(3) as g:
        yield g
