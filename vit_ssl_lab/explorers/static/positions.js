// PositionExplorer: the cosine similarity of one position with all others. Everything is in the browser.
function render({model, el}) {
  const ui = shell(model, el, 'Position explorer');
  const [rows, cols] = model.get('grid');
  const n = rows * cols;
  const tables = model.get('tables');
  let hover = null;
  // One byte a pair: 0 is a cosine of -1, 255 is 1.
  const row = (q, table = model.get('table')) =>
    bytes(model, 'similarity').subarray((table * n + q) * n, (table * n + q + 1) * n);
  const cosine = v => v / 127.5 - 1;
  const tone = v => v / 255;
  const query = () => hover ?? model.get('query');
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
    press: pin,
    move: pin,
    key: pin,
    focus() {
      big.cursor(model.get('query'));
      small.cursor(model.get('query'));
    },
  };
  const common = {
    rows,
    cols,
    ratio: rows / cols,
    on,
    label: 'positions: point at one, or move with the arrow keys, to see which others are alike',
  };
  const big = pane(ui, {
    ...common,
    caption: 'similarity with the outlined position',
    cls: 'vsl-map',
    draw(context, wide, tall) {
      context.drawImage(heat(row(query()), rows, cols, SIGNED, tone), 0, 0, wide, tall);
      outline(context, wide, tall, rows, cols, query(), '#e69f00');
    },
  });
  let atlas = null; // all maps, drawn once for a table; then only the outline moves
  const build = (w, t) => {
    const canvas = h('canvas', {width: w, height: t});
    const context = canvas.getContext('2d');
    context.imageSmoothingEnabled = false;
    for (let q = 0; q < n; q++)
      context.drawImage(
        heat(row(q), rows, cols, SIGNED, tone),
        ((q % cols) * w) / cols + 0.5,
        (Math.floor(q / cols) * t) / rows + 0.5,
        w / cols - 1,
        t / rows - 1,
      );
    return canvas;
  };
  const small = pane(ui, {
    ...common,
    caption: 'all positions, one map each',
    draw(context, wide, tall) {
      atlas ||= build(wide, tall);
      context.drawImage(atlas, 0, 0);
      outline(context, wide, tall, rows, cols, query(), '#e69f00');
    },
  });
  const scale = legend(SIGNED);
  scale.set('-1', '1');
  big.el.append(scale.el);
  const look = () => {
    big.redraw();
    small.redraw();
    const q = query();
    const values = row(q);
    let best = -1;
    for (let i = 0; i < n; i++) if (i !== q && (best < 0 || values[i] > values[best])) best = i;
    ui.say(
      `${where(q, cols)}` +
        (best < 0 ? '' : ` · most alike: ${where(best, cols)}, cosine ${cosine(values[best]).toFixed(2)}`) +
        ` · ${tables[model.get('table')]}`,
    );
    ui.root.dataset.query = q;
    ui.root.dataset.best = best;
  };
  if (tables.length > 1)
    ui.add(
      toolbar(radio(ui, 'table', {label: 'embedding', options: tables.map((name, i) => [i, name]), busy: false})),
    );
  ui.add(
    h('div', {class: 'vsl-panes', style: '--pane: 264px'}, big.el, small.el),
    remark('Cosine similarity of position embeddings, from -1 (blue) through 0 (white) to 1 (red).'),
  );
  ui.on('table', () => {
    atlas = null;
    look();
  });
  ui.on('query', look);
  look();
  return () => ui.close();
}
export default { render };
