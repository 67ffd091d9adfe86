"""Names that are no names: markup, ends of scripts, mathematics, half of a character. Whatever shows a name
shows it as text. And pages and files are written whole or not at all."""

import errno
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbconvert import HTMLExporter
from test_explorers import ALL, Encoder, state_of
from vit_ssl_lab import results
from vit_ssl_lab.data.dataset import Dataset
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.evaluation.features import Score
from vit_ssl_lab.evaluation.table import ScoreTable
from vit_ssl_lab.explorers.base import _answer_key, _json_in_page, _page
from vit_ssl_lab.explorers.features import FeatureExplorer
from vit_ssl_lab.notebook import run_notebook
from vit_ssl_lab.show import as_label, show_images, show_rows
from vit_ssl_lab.weights import save

HOSTILE = [
    '</script><script>window.hacked = 1</script>',
    '<!--<script>',
    '<img src=x onerror="window.hacked = 1">',
    '"><b onmouseover=window.hacked=1>',
    "'; window.hacked = 1; '",
    '<style>body {display: none}</style>',
    '&lt;b&gt; & &#60;',
    '{{css}} {{state}} {{script}}',
    ']]> --> */ ',
    '\u2028 \u2029 \x00 \x1b',
    'half a character \udc80',
    '$\\frac{1}{$ \\alpha_{',
    '__proto__',
    'constructor',
    '',
]
VOID = ('img', 'meta', 'br', 'hr', 'input', 'link')


class Elements(HTMLParser):
    "Every element of a page, and the text between them."

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def harmless(page: str, like: str) -> None:
    "The page has the elements that a page with a plain name has, and no handler of events."
    found, plain = Elements(page), Elements(like)
    assert found.tags == plain.tags
    assert found.open == plain.open == []
    assert not [name for name, _ in found.attributes if name.startswith('on')]
    assert '<!--' not in page


def table(*names: str) -> str:
    rows = {f'{name}{i}': {f'{name}kNN': Score(50.0 + i)} for i, name in enumerate(names)}
    return ScoreTable(rows, next(iter(rows)), 100)._repr_html_()


@pytest.mark.parametrize('name', HOSTILE, ids=range(len(HOSTILE)))
def test_tables(name):
    page = table(name, name)
    harmless(page, table('a', 'a'))
    shown = ' '.join(Elements(page).texts)
    assert as_label(name).strip() in shown


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_name_is_text_in_a_table(name):
    harmless(table(name, name), table('a', 'a'))


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.text() | st.floats() | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3)))
def test_any_state_is_json_without_markup(value):
    text = _json_in_page({'traits': {'x': value}})
    assert not set('<>&') & set(text)
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f'{word} is no JSON'))
    if 'nan' not in repr(value) and 'inf' not in repr(value):
        assert read['traits']['x'] == value


def with_hostile_words(value):
    "A trait with every text in it replaced by all hostile ones."
    if isinstance(value, str):
        return ' '.join(HOSTILE)
    if isinstance(value, (list, tuple)):
        return [with_hostile_words(item) for item in value]
    if isinstance(value, dict):
        return {with_hostile_words(k) + k: with_hostile_words(v) for k, v in value.items()}
    return value


@pytest.mark.parametrize('make', ALL, ids=lambda f: f.__name__)
def test_every_explorer_s_page_takes_any_word_in_any_trait(make):
    explorer = make()
    plain = explorer.to_html()
    keys, answers = explorer._offline_answers()
    traits = {name: with_hostile_words(value) for name, value in explorer.state().items()}
    answers = [(with_hostile_words(values), follow) for values, follow in answers]
    page = _page(HOSTILE[0], str(explorer._esm), str(explorer._css), traits, keys, answers)
    assert Elements(page).tags == Elements(plain).tags
    state = state_of(page)
    for name, value in traits.items():
        if not isinstance(value, (bytes, float)):
            assert state['traits'][name] == value
    page.encode('utf-8')  # nothing in it that a file can't hold


def test_keys_of_answers_are_spelled_as_the_browser_does():
    assert _answer_key([1.0, 0.25, 'Äpfel', True, None]) == '[1,0.25,"Äpfel",true,null]'


def hostile_set() -> Dataset:
    n = len(HOSTILE)
    pictures = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(n)
    return Dataset('hostile', 'test', pictures, labels, HOSTILE, (0.5,) * 3, (0.5,) * 3)


def test_figures_take_any_name(monkeypatch):
    data = hostile_set()
    shown = []
    monkeypatch.setattr('vit_ssl_lab.show.display', lambda data, **k: shown.append(data))
    show_images(data.images, titles=HOSTILE)
    show_rows(dict.fromkeys(HOSTILE, data.images[:2]), alt='rows')
    FeatureExplorer(Encoder(), data).figure().canvas.draw()
    assert len(shown) == 2


def test_a_page_of_a_notebook_takes_any_name():
    "What `make tour` and the site make of outputs: tables, texts, pictures with their alt texts."
    word = ' '.join(HOSTILE[:9])
    png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='

    def page(text, html):
        outputs = [
            nbformat.v4.new_output('stream', text=text),
            nbformat.v4.new_output('display_data', {'text/html': html}),
            nbformat.v4.new_output('display_data', {'text/plain': text}),
            nbformat.v4.new_output('display_data', {'image/png': png}, metadata={'image/png': {'alt': text}}),
        ]
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1', outputs=outputs, id='a')])
        return Elements(HTMLExporter().from_notebook_node(nb)[0])

    found, plain = page(word, table(word)), page('a', table('a'))
    assert found.tags == plain.tags
    assert not [name for name, _ in found.attributes if name.startswith('on')]


@pytest.mark.browser
def test_pages_with_hostile_classes_are_alive_and_unharmed(open_page):
    page = open_page(FeatureExplorer(Encoder(), hostile_set()))
    assert page.locator('.vsl-title').count() == 1
    assert page.evaluate('window.hacked') is None
    assert page.locator('canvas').count() > 0
    assert page.locator('#explorer b, #explorer script, #explorer img').count() == 0


# --- whole or not at all


def write_page(path):
    ALL[0]().to_html(path)


def write_weights(path):
    save(vit_nano(img_size=8, patch_size=4), path)


def write_notebook(path):
    nb = nbformat.v4.new_notebook()
    if not path.exists():
        nbformat.write(nb, path)
    run_notebook(path)


def write_result(path):
    results.save_result(path.stem, {'a': 1})


def write_network(path):
    results.save_network(path.name.partition('.')[0], {'a': torch.randn(4, 4)})


WRITERS = {
    'x.html': write_page,
    'x.safetensors': write_weights,
    'x.pth': write_weights,
    'x.json': write_result,
    'x.safetensors.xz': write_network,
}


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('where', ['write', 'fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file_or_none(tmp_path, monkeypatch, name, where):
    monkeypatch.setenv('VIT_SSL_LAB_RESULTS', str(tmp_path))
    path, write = tmp_path / name, WRITERS[name]

    def full(*a, **k):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(self, data):
        with open(self, 'wb') as file:
            file.write(data[: len(data) // 2])
        full()

    for before in (None, 'old'):
        if before:
            write(path)
        old = path.read_bytes() if before else None
        with monkeypatch.context() as m:
            if where == 'write' and name not in ('x.pth', 'x.safetensors'):
                m.setattr(Path, 'write_bytes', half)
            else:
                m.setattr(os, 'replace' if where == 'replace' else 'fsync', full)
            with pytest.raises(OSError, match='No space left'):
                write(path)
        assert (path.read_bytes() if path.exists() else None) == old
        assert [p.name for p in tmp_path.iterdir()] == ([name] if before else [])


@pytest.mark.notebooks
def test_a_notebook_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / 'x.ipynb'
    write_notebook(path)
    old = path.read_bytes()
    assert old.endswith(b'\n')

    def full(*a, **k):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_notebook(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
