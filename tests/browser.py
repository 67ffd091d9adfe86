"""A real Chromium and a real JupyterLab for the tests of widgets.
Nothing leaves the machine: every host but 127.0.0.1 is unknown to the browser."""

import contextlib, os, re, secrets, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
# Seconds to wait for something that usually takes one or two. Only a hang, or a very busy machine, needs
# more.
PATIENCE = 60
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-default-apps',
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1',
]


@contextlib.contextmanager
def chromium():
    "A browser."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def jupyter_lab(root: Path, **env: str):
    "A JupyterLab that serves `root`, with settings of its own; yields (address, token)."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    log = root / 'lab.log'
    names = [
        'JUPYTER_CONFIG_DIR',
        'JUPYTER_DATA_DIR',
        'JUPYTER_RUNTIME_DIR',
        'JUPYTERLAB_SETTINGS_DIR',
        'JUPYTERLAB_WORKSPACES_DIR',
        'IPYTHONDIR',
    ]
    folders = {name: str(root / '.jupyter' / name.lower()) for name in names}
    notifications = Path(folders['JUPYTERLAB_SETTINGS_DIR']) / '@jupyterlab/apputils-extension'
    notifications.mkdir(parents=True)
    (notifications / 'notification.jupyterlab-settings').write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    command = [
        sys.executable,
        '-m',
        'jupyterlab',
        '--no-browser',
        '--allow-root',
        '--ip=127.0.0.1',
        f'--port={port}',
        '--ServerApp.port_retries=0',
        f'--IdentityProvider.token={token}',
        f'--ServerApp.root_dir={root}',
        '--LabApp.extension_manager=readonly',
    ]
    with open(log, 'w') as out:
        process = subprocess.Popen(
            command, env={**os.environ, **folders, **env}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            for _ in range(2400):
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=5)
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.25)
            else:
                raise TimeoutError(log.read_text())
            yield f'http://127.0.0.1:{port}', token
        finally:  # the kernels are children of the server: end the whole group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def nameless(page) -> list[str]:
    "The controls of a page that a screen reader has no name for."
    return page.evaluate("""() => [...document.querySelectorAll('button, input, select, [tabindex]')]
        .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim()))
        .map(e => e.outerHTML)""")


def run_all(page, address: str, token: str, name: str, done: str, timeout: float = 600) -> None:
    """Open a notebook, run all its cells, wait for the text `done` that its last cell prints. `timeout` in
    seconds."""
    from playwright.sync_api import expect

    # one document: no tabs, no launcher
    page.goto(f'{address}/doc/tree/{name}?token={token}&reset', timeout=600_000)
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=600_000)
    # 'Run All' before the kernel is up is dropped without a word
    expect(page.locator('#jp-main-statusbar')).to_contain_text(
        re.compile(r'\(ipykernel\) \| Idle'), timeout=600_000
    )
    page.click('.jp-Notebook .jp-MarkdownCell')
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_text('Run All Cells', exact=True).click()
    page.locator('.jp-OutputArea-output', has_text=re.compile(rf'^\s*{re.escape(done)}\s*$')).wait_for(
        timeout=timeout * 1000
    )
