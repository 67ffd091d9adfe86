// AttentionExplorer: the pointer asks, the browser answers from one layer's attention;
// the kernel is asked only for another layer or picture.
function render({model, el}) {
  const ui = shell(model, el, 'Attention explorer');
  const [rows, cols] = model.get('grid');
  const [, height, width] = model.get('shape');
  const prefix = model.get('prefix');
  const n = rows * cols;
  const tokens = prefix + n;
  const CLS = -1;
  const pictures = gallery(model);
  let hover = null;
  let data = null;
  let peaks = null;
  let heads = 1;
  let values = new Float32Array(n);
  // Colours start at 0, or at the faintest patch: young networks attend to everything nearly alike.
  const tones = list => {
    const low = model.get('stretch') ? Math.min(...list) : 0;
    const high = Math.max(...list);
    return {low, high, of: v => (v - low) / (high - low || 1)};
  };
  let tone = tones([0, 1]);

  // Each row of attention came as bytes scaled by its own largest value.
  const at = (head, from, to) => (data[(head * tokens + from) * tokens + to] * peaks[head * tokens + from]) / 255;
  const token = q => (q === CLS ? 0 : prefix + q);
  const lookup = (head, from, to) => {
    if (head >= 0) return at(head, from, to);
    let sum = 0;
    for (let i = 0; i < heads; i++) sum += at(i, from, to);
    return sum / heads;
  };
  const mapOf = (head, query) => {
    const t = token(query);
    const to = model.get('direction') === 'to';
    const out = new Float32Array(n);
    for (let i = 0; i < n; i++) out[i] = to ? lookup(head, prefix + i, t) : lookup(head, t, prefix + i);
    return out;
  };
  const query = () => hover ?? model.get('query');
  const head = () => Math.min(model.get('head'), heads - 1);
  const nameOf = q => (q === CLS ? 'CLS' : where(q, cols));

  const pin = q => {
    hover = null;
    ui.send({query: q}, {busy: false});
    look();
  };
  const on = {
    hover(cell) {
      hover = cell < 0 ? null : cell;
      look();
    },
    press(cell) {
      pin(cell);
    },
    move(cell) {
      pin(cell);
    },
    key(cell) {
      pin(cell);
    },
    focus() {
      if (model.get('query') >= 0) seats.forEach(p => p.cursor(model.get('query')));
    },
  };
  const mark = (context, wide, tall) => outline(context, wide, tall, rows, cols, query(), '#e69f00');
  const common = {
    rows,
    cols,
    ratio: height / width,
    on,
    label: 'picture: point at a patch, or move with the arrow keys, to see its attention',
  };
  const picture = () => pictures[model.get('picture')];
  const seats = [
    pane(ui, {
      ...common,
      caption: 'point at a patch',
      cls: 'vsl-query',
      draw(context, wide, tall) {
        context.drawImage(picture(), 0, 0, wide, tall);
        mark(context, wide, tall);
      },
    }),
    pane(ui, {
      ...common,
      caption: 'lit by its attention',
      draw(context, wide, tall) {
        context.drawImage(picture(), 0, 0, wide, tall);
        for (let i = 0; i < n; i++) {
          context.fillStyle = `rgba(0,0,0,${0.9 * (1 - tone.of(values[i]))})`;
          context.fillRect(
            Math.floor(((i % cols) * wide) / cols),
            Math.floor((Math.floor(i / cols) * tall) / rows),
            Math.ceil(wide / cols),
            Math.ceil(tall / rows),
          );
        }
        mark(context, wide, tall);
      },
    }),
    pane(ui, {
      ...common,
      caption: 'attention',
      cls: 'vsl-map',
      draw(context, wide, tall) {
        context.drawImage(heat(values, rows, cols, VIRIDIS, tone.of), 0, 0, wide, tall);
        mark(context, wide, tall);
      },
    }),
  ];
  const scale = legend(VIRIDIS);
  seats[2].el.append(scale.el);

  // One small map for each head, and the mean: buttons of a radio group.
  const strip = h('div', {class: 'vsl-heads', role: 'radiogroup', 'aria-label': 'head'});
  let tiles = [];
  const buildHeads = () => {
    strip.replaceChildren();
    const entropy = model.get('entropy');
    const distance = model.get('distance');
    tiles = (heads > 1 ? [-1, ...Array(heads).keys()] : [0]).map(i => {
      const canvas = h('canvas', {width: cols * 8, height: rows * 8, 'aria-hidden': 'true'});
      let name = i < 0 ? 'mean' : `head ${i + 1}`;
      if (heads === 1) name = model.get('rollout') ? 'rollout' : 'head 1';
      const mean = list => list.reduce((a, b) => a + b, 0) / (list.length || 1);
      const e = i < 0 ? mean(entropy) : entropy[i];
      const d = i < 0 ? mean(distance) : distance[i];
      const facts = e === undefined ? '' : `${e.toFixed(1)} bit, ${d.toFixed(0)} px`;
      const button = pushButton(
        {
          role: 'radio',
          'data-head': i,
          'aria-label': `${name}: entropy ${facts.replace(',', ', distance')}`,
          title: 'entropy of the attention, and how far it reaches on average',
          onclick: () => choose(i),
        },
        canvas,
        name,
        h('br'),
        facts,
      );
      button.addEventListener('keydown', event => {
        const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        const k = (tiles.findIndex(t => t.i === i) + step + tiles.length) % tiles.length;
        choose(tiles[k].i);
        tiles[k].button.focus();
      });
      strip.append(button);
      return {i, canvas, button};
    });
  };
  const choose = i => {
    ui.send({head: i}, {busy: false});
    look();
  };

  const look = () => {
    if (!data) return;
    values = mapOf(head(), query());
    tone = tones(values);
    seats.forEach(p => p.redraw());
    for (const {i, canvas, button} of tiles) {
      const v = i === head() ? values : mapOf(i, query());
      const context = canvas.getContext('2d');
      context.imageSmoothingEnabled = false;
      context.drawImage(heat(v, rows, cols, VIRIDIS, tones(v).of), 0, 0, canvas.width, canvas.height);
      button.setAttribute('aria-checked', i === head());
      button.tabIndex = i === head() ? 0 : -1;
    }
    const to = model.get('direction') === 'to';
    const q = query();
    const t = token(q);
    const which = head() < 0 ? `mean of ${heads} heads` : `head ${head() + 1}`;
    const who = model.get('rollout') ? 'rollout' : `layer ${model.get('layer') + 1}, ${which}`;
    const parts = [`attention ${to ? 'to' : 'from'} ${nameOf(q)} (${who})`, `brightest patch ${percent(tone.high)}`];
    if (prefix && !to) parts.push(`CLS gets ${percent(lookup(head(), t, 0))}`);
    if (prefix && to && q !== CLS) parts.push(`CLS gives ${percent(lookup(head(), 0, t))}`);
    ui.say(parts.join(' · '));
    scale.set(tone.low ? percent(tone.low) : '0', percent(tone.high));
    ui.root.dataset.query = q;
    ui.root.dataset.top = tone.high.toFixed(5);
    cls?.setAttribute('aria-pressed', q === CLS);
  };
  const load = () => {
    const same = heads;
    data = bytes(model, 'attention');
    peaks = floats(model, 'peaks');
    heads = peaks.length / tokens;
    const fresh = data.length === heads * tokens * tokens && heads >= 1;
    if (!fresh) {
      data = null;
      return;
    }
    if (same !== heads || ui.root.dataset.heads !== String(model.get('answered'))) buildHeads();
    ui.root.dataset.heads = model.get('answered');
    look();
  };

  const layers = model.get('layers');
  const cls = prefix
    ? pushButton(
        {class: 'vsl-cls', 'aria-pressed': 'false', title: 'the attention of the CLS token', onclick: () => pin(CLS)},
        'CLS',
      )
    : null;
  const bar = toolbar(
    slider(ui, 'layer', {
      label: 'layer',
      min: 0,
      max: layers - 1,
      step: 1,
      format: v => `${v + 1} of ${layers}`,
      changes: layer => ({layer, rollout: false}),
    }),
    radio(ui, 'rollout', {
      label: 'show',
      options: [
        [false, 'layer'],
        [true, 'rollout'],
      ],
    }),
    radio(ui, 'direction', {label: 'direction', options: plainOptions('from', 'to'), busy: false}),
    radio(ui, 'stretch', {
      label: 'colours from',
      options: [
        [false, '0'],
        [true, 'faintest'],
      ],
      busy: false,
    }),
    cls ? h('span', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, 'token'), cls) : null,
  );
  ui.add(
    bar,
    thumbnails(ui, pictures),
    paneRow(
      seats.map(p => p.el),
      strip,
    ),
    remark(
      'Attention from a token sums to 1 over all tokens, CLS too, which the maps leave out. ' +
        'Each map has its own colours, up to its brightest patch.',
    ),
  );
  ui.on('attention peaks answered', load);
  ui.on('direction query head stretch', look);
  load();
  return () => ui.close();
}
export default { render };
