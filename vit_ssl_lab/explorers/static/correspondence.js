// CorrespondenceExplorer: point at a region of one view; its match and its true place in the other.
function render({model, el}) {
  const ui = shell(model, el, 'Correspondence explorer');
  const [n, height, width] = model.get('shape'), [rows, cols] = model.get('grid'), N = rows * cols, ratio = height / width;
  const gram = bytes(model, 'gram'), points = floats(model, 'points'), truth = new Int32Array(bytes(model, 'truth').slice().buffer);
  const firsts = gallery(model), other = bytes(model, 'second'), names = model.get('names'), encoders = model.get('encoders');
  const seconds = Array.from({length: n}, (_, i) => bitmap(other, height, width, i * height * width * 3));
  const MATCH = '#e69f00', TRUE = '#ffffff';
  let hover = null; // {side, cell} while the pointer is over a view

  const picture = () => Math.min(n - 1, model.get('picture')), which = () => Math.min(encoders.length - 1, model.get('which'));
  const asked = () => hover || {side: model.get('side'), cell: Math.min(N - 1, model.get('region'))};
  // Similarity of one region with all of the other view, from the matrix of first with second regions.
  const similar = ({side, cell}) => {
    const at = (which() * n + picture()) * N * N;
    return side === 0 ? gram.subarray(at + cell * N, at + (cell + 1) * N) : Uint8Array.from({length: N}, (_, i) => gram[at + i * N + cell]);
  };
  const best = values => values.reduce((b, v, i) => v > values[b] ? i : b, 0);
  const trueOf = ({side, cell}) => truth[(side * n + picture()) * N + cell];
  const cosine = v => v / 127.5 - 1;

  const viewPane = side => pane(ui, {caption: `view ${side + 1}`, rows, cols, ratio, cls: `vsl-view${side + 1}`,
    label: `view ${side + 1}: point at a region, or move with the arrow keys, to see what is most alike in the other view`,
    draw(g, w, t) {
      const q = asked(), i = picture();
      g.drawImage((side === 0 ? firsts : seconds)[i], 0, 0, w, t);
      if (q.side === side) { outline(g, w, t, rows, cols, q.cell, MATCH); return; }
      const values = similar(q), low = Math.min(...values), high = Math.max(...values);
      g.globalAlpha = .6; g.drawImage(heat(values, rows, cols, VIRIDIS, v => (v - low) / Math.max(1, high - low)), 0, 0, w, t); g.globalAlpha = 1;
      outline(g, w, t, rows, cols, best(values), MATCH);
      if (trueOf(q) < 0) return;
      const o = ((q.side * n + i) * N + q.cell) * 2, y = points[o] / rows * t, x = points[o + 1] / cols * w;
      for (const [colour, line] of [['#000', 8], [TRUE, 4]]) { g.beginPath(); g.arc(x, y, 13, 0, 7); g.lineWidth = line; g.strokeStyle = colour; g.stroke(); }
    },
    on: {hover(cell) { hover = cell < 0 ? null : {side, cell}; look(); }, press(cell) { pin(side, cell); }, move(cell) { pin(side, cell); }, key(cell) { pin(side, cell); }, focus() { pin(side, views[side].cursor()); }}});
  const pin = (side, cell) => { hover = null; ui.send({side, region: cell}, {busy: false}); look(); };
  const views = [0, 1].map(viewPane);
  const judged = pane(ui, {caption: 'which regions are found', rows, cols, ratio, cls: 'vsl-judged', label: 'which regions of the asked view are found in the other: right, wrong, or not visible there',
    draw(g, w, t) {
      const {side} = asked();
      g.drawImage((side === 0 ? firsts : seconds)[picture()], 0, 0, w, t);
      for (let cell = 0; cell < N; cell++) {
        const real = trueOf({side, cell}), right = best(similar({side, cell})) === real, x = cell % cols * w / cols, y = Math.floor(cell / cols) * t / rows;
        g.globalAlpha = .6; g.fillStyle = real < 0 ? '#777777' : right ? '#009e73' : '#d55e00'; g.fillRect(x + 1, y + 1, w / cols - 2, t / rows - 2); g.globalAlpha = 1;
        if (real < 0) continue;
        g.fillStyle = '#fff'; g.font = `bold ${Math.round(t / rows / 2)}px sans-serif`; g.textAlign = 'center'; g.textBaseline = 'middle'; g.fillText(right ? '✓' : '×', x + w / cols / 2, y + t / rows / 2);
      }
    }});
  const scale = legend(VIRIDIS);

  const look = () => {
    const q = asked(), values = similar(q), match = best(values), real = trueOf(q);
    views.forEach(v => v.redraw()); judged.redraw();
    views[q.side].caption(`view ${q.side + 1}: the asked region`); views[1 - q.side].caption(`view ${2 - q.side}: how similar`);
    scale.set(cosine(Math.min(...values)).toFixed(2), cosine(values[match]).toFixed(2));
    let right = 0, seen = 0;
    for (let cell = 0; cell < N; cell++) { const r = trueOf({side: q.side, cell}); if (r >= 0) { seen++; right += best(similar({side: q.side, cell})) === r; } }
    Object.assign(ui.root.dataset, {side: q.side, region: q.cell, match, truth: real, picture: picture(), which: which(), correct: right, seen});
    ui.say(`${encoders[which()]} · view ${q.side + 1}, ${where(q.cell, cols)}: most alike ${where(match, cols)}, cosine ${cosine(values[match]).toFixed(2)} · ` +
      (real < 0 ? 'not visible in the other view' : match === real ? 'right' : `wrong: it is at ${where(real, cols)}`) + ` · ${names[picture()]}: ${right} of ${seen} right`);
  };
  const thumbs = chooser(ui, firsts);
  const bar = h('div', {class: 'vsl-bar'}, encoders.length > 1 ? radio(ui, 'which', {label: 'encoder', options: encoders.map((name, i) => [i, name])}) : null);
  ui.body.append(thumbs ? h('div', {class: 'vsl-bar'}, thumbs) : '', bar,
    h('div', {class: 'vsl-panes', style: '--pane: 230px'}, views.map(v => v.el), judged.el),
    h('div', {style: 'max-width: 230px'}, scale.el),
    h('p', {class: 'vsl-note'}, 'Similarity is the cosine, coloured from its smallest to its largest value. Orange box: most similar region. White ring: where the region really is. Right (✓, green), wrong (×, orange), grey: not visible in the other view.'));
  ui.on('picture which side region', look);
  look();
  return () => ui.close();
}
export default { render };
