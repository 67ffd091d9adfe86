// ZeroShotExplorer: pictures against captions.
// The ranking for one picture, the matrix for all, and what each patch adds.
function render({model, el}) {
  const ui = shell(model, el, 'Zero-shot explorer');
  const [n, height, width] = model.get('shape');
  const [rows, cols] = model.get('grid');
  const patches = rows * cols;
  const pictures = gallery(model);
  const names = model.get('names');
  let captions = [];
  let cosines = null;
  let maps = null;
  let hover = null;
  let cell = null;
  const nameOf = i => names[i] || `picture ${i + 1}`;
  const picture = () => (cell ? Math.floor(cell[0]) : model.get('picture'));
  const caption = () => Math.min(cell ? cell[1] : model.get('caption'), captions.length - 1);
  const patch = () => hover ?? model.get('patch');
  const added = (i, j, p) => maps[(i * captions.length + j) * patches + p];
  const cosine = (i, j) => cosines[i * captions.length + j];
  const shares = i => {
    // softmax over the captions, as the model was trained to read its cosines
    const s = model.get('scale');
    const row = captions.map((_, j) => s * cosine(i, j));
    const top = Math.max(...row);
    const e = row.map(v => Math.exp(v - top));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map(v => v / sum);
  };

  // What is asked: one caption a line.
  const text = h('textarea', {
    class: 'vsl-captions',
    rows: 6,
    'aria-label': 'captions, one a line',
    disabled: !ui.can('text'),
    style: 'width: 100%; box-sizing: border-box; font: inherit',
    'data-lm-suppress-shortcuts': 'true',
  });
  const compare = () => ui.send({text: text.value}, {delay: 0});
  text.addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      compare();
    }
    event.stopPropagation();
  });
  const button = pushButton(
    {class: 'vsl-compare', disabled: !ui.can('text'), onclick: compare},
    'compare (Ctrl+Enter)',
  );

  // The picture, with what each patch adds to the cosine with the chosen caption.
  // A softmax sees only differences between captions, so by default the mean over the captions is taken away.
  const values = () => {
    const i = picture();
    const j = caption();
    const m = captions.length;
    const apart = model.get('relative') && m > 1;
    return Float32Array.from({length: patches}, (_, p) => {
      let mean = 0;
      if (apart) for (let k = 0; k < m; k++) mean += added(i, k, p) / m;
      return added(i, j, p) - mean;
    });
  };
  const scaleOf = map => Math.max(1e-9, ...map.map(Math.abs));
  let map = new Float32Array(patches);
  const plain = pane(ui, {
    caption: 'picture',
    rows,
    cols,
    ratio: height / width,
    draw(context, wide, tall) {
      context.drawImage(pictures[picture()], 0, 0, wide, tall);
    },
  });
  const pin = p => {
    hover = null;
    ui.send({patch: p}, {busy: false});
    look();
  };
  const board = pane(ui, {
    caption: 'what each patch adds',
    rows,
    cols,
    ratio: height / width,
    cls: 'vsl-patches',
    label: 'point at a patch, or move with the arrow keys, to see what it adds to each caption',
    draw(context, wide, tall) {
      const most = scaleOf(map);
      context.drawImage(pictures[picture()], 0, 0, wide, tall);
      context.globalAlpha = 0.72;
      context.drawImage(
        heat(map, rows, cols, SIGNED, v => 0.5 + v / most / 2),
        0,
        0,
        wide,
        tall,
      );
      context.globalAlpha = 1;
      outline(context, wide, tall, rows, cols, patch(), '#e69f00');
    },
    on: {
      hover(p) {
        hover = p < 0 ? null : p;
        look();
      },
      press: pin,
      move: pin,
      key: pin,
      focus() {
        if (model.get('patch') >= 0) board.cursor(model.get('patch'));
      },
    },
  });
  const scale = legend(SIGNED);
  board.el.append(scale.el);

  // The ranking: buttons of a radio group, the best caption first; arrow keys go down the list.
  const list = h('div', {
    class: 'vsl-ranking',
    role: 'radiogroup',
    'aria-label': 'captions, the best first',
    style: 'display: grid; gap: 3px',
  });
  let order = [];
  list.addEventListener('keydown', event => {
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    choose(order[(order.indexOf(caption()) + step + order.length) % order.length], true);
  });
  const choose = (j, focus) => {
    cell = null;
    ui.send({caption: j}, {busy: false});
    look();
    if (focus) list.querySelector('[aria-checked=true]').focus();
  };
  const drawList = () => {
    const i = picture();
    const p = shares(i);
    const q = patch();
    order = captions.map((_, j) => j).sort((a, b) => cosine(i, b) - cosine(i, a));
    const had = list.contains(document.activeElement);
    list.replaceChildren(
      ...order.map(j =>
        pushButton(
          {
            role: 'radio',
            'aria-checked': String(j === caption()),
            tabindex: j === caption() ? 0 : -1,
            'data-caption': j,
            onclick: () => choose(j),
            style: [
              'text-align: left',
              'color: inherit',
              `font-weight: ${j === caption() ? 700 : 400}`,
              `background: linear-gradient(to right, rgba(0,114,178,.28) ${100 * p[j]}%, transparent ${100 * p[j]}%)`,
            ].join('; '),
          },
          `${percent(p[j])} · ${captions[j]} · cosine ${cosine(i, j).toFixed(2)}` +
            (q >= 0 ? ` · this patch ${added(i, j, q) >= 0 ? '+' : ''}${added(i, j, q).toFixed(2)}` : ''),
        ),
      ),
    );
    if (had) list.querySelector('[aria-checked=true]').focus();
  };

  // The matrix: a row a picture, a column a caption.
  // A small table of its own, since its shape changes with the captions.
  const frame = h('div', {class: 'vsl-matrix', style: '--pane: 300px'});
  const ramp = legend(VIRIDIS);
  let matrix = null;
  const buildMatrix = () => {
    const m = captions.length;
    const go = c => {
      cell = null;
      ui.send({picture: Math.floor(c / m), caption: c % m}, {busy: false});
      look();
    };
    matrix = pane(ui, {
      caption: 'cosines, pictures by captions',
      rows: n,
      cols: m,
      ratio: Math.min(1, Math.max(0.25, n / m)),
      cls: 'vsl-cosines',
      label: 'matrix of cosines: point at a cell, or move with the arrow keys',
      draw(context, wide, tall) {
        const low = Math.min(...cosines);
        const high = Math.max(...cosines);
        context.drawImage(
          heat(cosines, n, m, VIRIDIS, v => (v - low) / (high - low || 1)),
          0,
          0,
          wide,
          tall,
        );
        ramp.set(low.toFixed(2), high.toFixed(2));
        for (let i = 0; i < n; i++) {
          let best = 0;
          for (let j = 1; j < m; j++) if (cosine(i, j) > cosine(i, best)) best = j;
          context.fillStyle = '#d55e00';
          context.beginPath();
          context.arc(
            ((best + 0.5) * wide) / m,
            ((i + 0.5) * tall) / n,
            Math.max(2, Math.min(wide / m, tall / n) / 8),
            0,
            7,
          );
          context.fill();
        }
        outline(context, wide, tall, n, m, picture() * m + caption(), '#e69f00');
      },
      on: {
        hover(c) {
          cell = c < 0 ? null : [Math.floor(c / m), c % m];
          look();
        },
        press: go,
        move: go,
        key: go,
        focus() {
          matrix.cursor(picture() * m + caption());
        },
      },
    });
    matrix.el.append(ramp.el);
    frame.replaceChildren(matrix.el);
  };

  const look = () => {
    const i = picture();
    const j = caption();
    const q = patch();
    const p = shares(i);
    map = values();
    plain.caption(nameOf(i));
    board.caption(`its patches for "${captions[j]}"`);
    plain.redraw();
    board.redraw();
    matrix.redraw();
    drawList();
    const most = scaleOf(map);
    scale.set((-most).toPrecision(2), most.toPrecision(2));
    Object.assign(ui.root.dataset, {
      picture: i,
      caption: j,
      patch: q,
      best: order[0],
      cosine: cosine(i, j).toFixed(4),
      added: q >= 0 ? added(i, j, q).toFixed(4) : '',
    });
    const similarity = cosine(i, j).toFixed(2);
    const ofPatch = () =>
      `${where(q, cols)} adds ${added(i, j, q).toFixed(2)} to "${captions[j]}" ` +
      `(the mean over patches is the cosine, ${similarity})`;
    const ofPicture = () =>
      `${nameOf(i)} and "${captions[j]}": cosine ${similarity}, ` +
      `${percent(p[j])} of ${captions.length} captions; best is "${captions[order[0]]}"`;
    ui.say(q >= 0 && !cell ? ofPatch() : ofPicture());
  };
  const read = () => {
    captions = model.get('captions');
    cosines = floats(model, 'cosines');
    maps = floats(model, 'maps');
    cell = null;
    text.value = model.get('text');
    unread.textContent = model.get('unread');
    buildMatrix();
    look();
  };
  const unread = h('p', {class: 'vsl-note vsl-unread', 'aria-live': 'polite'});
  ui.add(
    chooser(ui, pictures),
    radio(ui, 'relative', {
      label: 'patches',
      busy: false,
      options: [
        [true, 'beyond the mean caption'],
        [false, 'what they add'],
      ],
    }),
    paneRow(plain.el, board.el, h('div', {style: 'flex: 1; min-width: 280px'}, list)),
    h(
      'div',
      {class: 'vsl-panes', style: 'margin-top: 8px'},
      h('div', {style: 'flex: 1; min-width: 260px'}, text, button, unread),
      frame,
    ),
  );
  ui.on('maps', read);
  ui.on('picture caption patch relative', () => look());
  read();
  return () => ui.close();
}
export default { render };
