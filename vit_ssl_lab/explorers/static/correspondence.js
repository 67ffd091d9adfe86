// CorrespondenceExplorer: point at a region of one view; its match and its true place in the other.
function render({model, el}) {
  const ui = shell(model, el, 'Correspondence explorer');
  const [n, height, width] = model.get('shape');
  const [rows, cols] = model.get('grid');
  const N = rows * cols;
  const ratio = height / width;
  const gram = bytes(model, 'gram');
  const points = floats(model, 'points');
  const truth = new Int32Array(bytes(model, 'truth').slice().buffer);
  const firsts = gallery(model);
  const other = bytes(model, 'second');
  const names = model.get('names');
  const encoders = model.get('encoders');
  const seconds = Array.from({length: n}, (_, i) => bitmap(other, height, width, i * height * width * 3));
  const MATCH = '#e69f00';
  const TRUE = '#ffffff';
  let hover = null; // {side, cell} while the pointer is over a view

  const picture = () => Math.min(n - 1, model.get('picture'));
  const which = () => Math.min(encoders.length - 1, model.get('which'));
  const asked = () => hover || {side: model.get('side'), cell: Math.min(N - 1, model.get('region'))};
  // Similarity of one region with all of the other view, from the matrix of first with second regions.
  const similar = ({side, cell}) => {
    const at = (which() * n + picture()) * N * N;
    return side === 0
      ? gram.subarray(at + cell * N, at + (cell + 1) * N)
      : Uint8Array.from({length: N}, (_, i) => gram[at + i * N + cell]);
  };
  const best = values => values.reduce((b, v, i) => (v > values[b] ? i : b), 0);
  const trueOf = ({side, cell}) => truth[(side * n + picture()) * N + cell];
  const cosine = v => v / 127.5 - 1;

  const viewPane = side =>
    pane(ui, {
      caption: `view ${side + 1}`,
      rows,
      cols,
      ratio,
      cls: `vsl-view${side + 1}`,
      label:
        `view ${side + 1}: point at a region, or move with the arrow keys, ` +
        'to see what is most alike in the other view',
      draw(context, wide, tall) {
        const q = asked();
        const i = picture();
        context.drawImage((side === 0 ? firsts : seconds)[i], 0, 0, wide, tall);
        if (q.side === side) {
          outline(context, wide, tall, rows, cols, q.cell, MATCH);
          return;
        }
        const values = similar(q);
        const low = Math.min(...values);
        const high = Math.max(...values);
        context.globalAlpha = 0.6;
        context.drawImage(
          heat(values, rows, cols, VIRIDIS, v => (v - low) / Math.max(1, high - low)),
          0,
          0,
          wide,
          tall,
        );
        context.globalAlpha = 1;
        outline(context, wide, tall, rows, cols, best(values), MATCH);
        if (trueOf(q) < 0) return;
        const o = ((q.side * n + i) * N + q.cell) * 2;
        const y = (points[o] / rows) * tall;
        const x = (points[o + 1] / cols) * wide;
        for (const [colour, thick] of [
          ['#000', 8],
          [TRUE, 4],
        ]) {
          context.lineWidth = thick;
          context.strokeStyle = colour;
          ring(context, x, y, 13);
        }
      },
      on: {
        hover(cell) {
          hover = cell < 0 ? null : {side, cell};
          look();
        },
        press(cell) {
          pin(side, cell);
        },
        move(cell) {
          pin(side, cell);
        },
        key(cell) {
          pin(side, cell);
        },
        focus() {
          pin(side, views[side].cursor());
        },
      },
    });
  const pin = (side, cell) => {
    hover = null;
    ui.send({side, region: cell}, {busy: false});
    look();
  };
  const views = [0, 1].map(viewPane);
  const judged = pane(ui, {
    caption: 'which regions are found',
    rows,
    cols,
    ratio,
    cls: 'vsl-judged',
    label: 'which regions of the asked view are found in the other: right, wrong, or not visible there',
    draw(context, wide, tall) {
      const {side} = asked();
      context.drawImage((side === 0 ? firsts : seconds)[picture()], 0, 0, wide, tall);
      for (let cell = 0; cell < N; cell++) {
        const real = trueOf({side, cell});
        const right = best(similar({side, cell})) === real;
        const x = ((cell % cols) * wide) / cols;
        const y = (Math.floor(cell / cols) * tall) / rows;
        context.globalAlpha = 0.6;
        context.fillStyle = right ? '#009e73' : '#d55e00';
        if (real < 0) context.fillStyle = '#777777';
        context.fillRect(x + 1, y + 1, wide / cols - 2, tall / rows - 2);
        context.globalAlpha = 1;
        if (real < 0) continue;
        context.fillStyle = '#fff';
        context.font = `bold ${Math.round(tall / rows / 2)}px sans-serif`;
        context.textAlign = 'center';
        context.textBaseline = 'middle';
        context.fillText(right ? '✓' : '×', x + wide / cols / 2, y + tall / rows / 2);
      }
    },
  });
  const scale = legend(VIRIDIS);

  const look = () => {
    const q = asked();
    const values = similar(q);
    const match = best(values);
    const real = trueOf(q);
    views.forEach(v => v.redraw());
    judged.redraw();
    views[q.side].caption(`view ${q.side + 1}: the asked region`);
    views[1 - q.side].caption(`view ${2 - q.side}: how similar`);
    scale.set(cosine(Math.min(...values)).toFixed(2), cosine(values[match]).toFixed(2));
    let right = 0;
    let seen = 0;
    for (let cell = 0; cell < N; cell++) {
      const r = trueOf({side: q.side, cell});
      if (r >= 0) {
        seen++;
        right += best(similar({side: q.side, cell})) === r;
      }
    }
    Object.assign(ui.root.dataset, {
      side: q.side,
      region: q.cell,
      match,
      truth: real,
      picture: picture(),
      which: which(),
      correct: right,
      seen,
    });
    let verdict = match === real ? 'right' : `wrong: it is at ${where(real, cols)}`;
    if (real < 0) verdict = 'not visible in the other view';
    const similarity = cosine(values[match]).toFixed(2);
    ui.say(
      [
        encoders[which()],
        `view ${q.side + 1}, ${where(q.cell, cols)}: most alike ${where(match, cols)}, cosine ${similarity}`,
        verdict,
        `${names[picture()]}: ${right} of ${seen} right`,
      ].join(' · '),
    );
  };
  const bar = toolbar(
    encoders.length > 1
      ? radio(ui, 'which', {label: 'encoder', options: encoders.map((name, i) => [i, name])})
      : null,
  );
  ui.add(
    thumbnails(ui, firsts),
    bar,
    h(
      'div',
      {class: 'vsl-panes', style: '--pane: 230px'},
      views.map(v => v.el),
      judged.el,
    ),
    h('div', {style: 'max-width: 230px'}, scale.el),
    remark(
      'Similarity is the cosine, coloured from its smallest to its largest value. Orange box: most similar region. ' +
        'White ring: where the region really is. Right (✓, green), wrong (×, orange), ' +
        'grey: not visible in the other view.',
    ),
  );
  ui.on('picture which side region', look);
  look();
  return () => ui.close();
}
export default { render };
