"A notebook that is executed again without a change stores the same bytes."

import base64, io, json
import matplotlib.pyplot as plt
import nbformat
import pytest
from vit_ssl_lab.notebook import VIEW, run_notebook, settled, stable_outputs


def printed(text, name='stdout'):
    return dict(output_type='stream', name=name, text=text)


def shown(**data):
    return dict(output_type='display_data', metadata={}, data=data)


def table(id):
    return shown(**{'text/html': f'<style>#T_{id}_row0 {{}}</style><table id="T_{id}"></table>'})


def png(**metadata):
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    file = io.BytesIO()
    fig.savefig(file, format='png', metadata=metadata)
    plt.close(fig)
    return base64.b64encode(file.getvalue()).decode()


def test_random_ids_are_the_cells_own():
    first = [shown(**{VIEW: dict(model_id='ab' * 16, version_major=2)}), table('1a2b3')]
    again = [shown(**{VIEW: dict(model_id='cd' * 16, version_major=2)}), table('9f8e7')]
    assert stable_outputs(first, 'a') == stable_outputs(again, 'a')
    assert stable_outputs(first, 'a') != stable_outputs(first, 'b')
    html = stable_outputs([table('1a2b3')], 'a')[0]['data']['text/html']
    assert '1a2b3' not in html
    assert html.count('T_') == 2
    assert len(set(html.split('T_')[i][:5] for i in (1, 2))) == 1


def test_two_widgets_of_one_cell_stay_two():
    both = [shown(**{VIEW: dict(model_id=c * 32)}) for c in 'ab']
    first, second = (o['data'][VIEW]['model_id'] for o in stable_outputs(both, 'a'))
    assert first != second
    assert len(first) == len(second) == 32


def test_memory_addresses_are_dropped():
    outputs = stable_outputs([printed('<A at 0x7fb2c3d4e5f6> and 0x7fb2c3d4e5f6, not 0x10')], 'a')
    assert outputs[0]['text'] == '<A> and 0x0, not 0x10'


def test_printed_pieces_are_merged_and_stderr_is_dropped():
    pieces = [printed('a\n'), printed('warning', 'stderr'), printed('b\n')]
    assert stable_outputs(pieces, 'a') == [printed('a\nb\n')]
    # the caller's are not changed
    assert len(pieces) == 3
    assert pieces[0]['text'] == 'a\n'


def test_a_png_does_not_say_who_wrote_it():
    one = png(Software='matplotlib 1')
    other = png(Software='matplotlib 2', Author='x')
    assert one != other
    stable = [stable_outputs([shown(**{'image/png': p})], 'a')[0]['data']['image/png'] for p in (one, other)]
    assert stable[0] == stable[1]
    assert (
        plt.imread(io.BytesIO(base64.b64decode(stable[0]))).shape
        == plt.imread(io.BytesIO(base64.b64decode(one))).shape
    )


def test_counts_are_dropped():
    output = dict(output_type='execute_result', execution_count=7, metadata={}, data={'text/plain': '1'})
    assert stable_outputs([output], 'a')[0]['execution_count'] is None


@pytest.mark.parametrize(
    'old, new',
    [
        ('took 118 s', 'took 96 s'),
        ('574 images/s', '1,021.5 images/s'),
        ('in 12.3 ms', 'in 8 ms'),
        ('kNN 61.2 % in 0.9 s', 'kNN 61.2 % in 10.1 s'),
        ("{'kNN': 61.2, 'seconds': 1.5}", "{'kNN': 61.2, 'seconds': 12.25}"),
        ('10,000 pictures a second', '9,000 pictures a second'),
        ('1.8 times as fast', '2.1 times as fast'),
        ('step    9 s', 'step   10 s'),
    ],
)
def test_only_another_duration_keeps_what_is_stored(old, new):
    stored = [printed(old)]
    assert settled(stored, [printed(new)]) is stored


@pytest.mark.parametrize(
    'old, new',
    [
        ('kNN 61.2 %', 'kNN 61.3 %'),
        ('3 seeds', '4 seeds'),
        ('step 10, 2 s', 'step 11, 2 s'),
        ('loss 0.51 in 3 s', 'loss 0.52 in 3 s'),
        ('5 heads', '6 heads'),
    ],
)
def test_anything_else_is_news(old, new):
    now = [printed(new)]
    assert settled([printed(old)], now) is now


def test_pictures_and_kinds_are_compared_whole():
    text = [printed('118 s')]
    assert settled([], text) is text
    now = [shown(**{'text/plain': '118 s'})]
    assert settled(text, now) is now
    picture = [shown(**{'image/png': 'AAAA', 'text/plain': 'in 3 s'})]
    slower = [shown(**{'image/png': 'AAAA\n', 'text/plain': 'in 4 s'})]
    assert settled(picture, slower) is picture
    other = [shown(**{'image/png': 'AAAB', 'text/plain': 'in 3 s'})]
    assert settled(picture, other) is other


@pytest.mark.notebooks
def test_a_notebook_run_twice_is_byte_for_byte_the_same(tmp_path):
    path = tmp_path / 'demo.ipynb'
    cell = '''import time, ipywidgets, pandas as pd, matplotlib.pyplot as plt
print(object(), f"in {time.time() % 100:.3f} s", flush=True)
display(pd.DataFrame(dict(a=[1])).style)
fig, ax = plt.subplots(figsize=(1, 1))
plt.show()
ipywidgets.IntSlider()'''
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbformat.write(nb, path)
    run_notebook(path)
    first = path.read_bytes()
    run_notebook(path)
    assert path.read_bytes() == first
    stored = json.loads(first)
    assert stored['metadata'] == {}
    assert stored['cells'][0]['execution_count'] is None
    assert any(VIEW in o.get('data', {}) for o in stored['cells'][0]['outputs'])
