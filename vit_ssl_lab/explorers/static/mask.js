// MaskExplorer and ReconstructionExplorer: paint what is hidden, see what comes back.
function render({model, el}) {
  const predicts = model.get('predicts');
  const hand = 'by hand';
  const ui = shell(model, el, predicts ? 'Reconstruction explorer' : 'Mask explorer');
  const [rows, cols] = model.get('grid');
  const [, height, width] = model.get('shape');
  const n = rows * cols;
  const pictures = gallery(model);
  const paints = ui.can('hidden');
  let hidden = Uint8Array.from(bytes(model, 'hidden'));
  let hover = -1;
  let brush = 1;
  let results = [];
  let painting = false;

  const picture = () => pictures[model.get('picture')];
  const image = get => (context, wide, tall) => {
    const source = get();
    if (source) context.drawImage(source, 0, 0, wide, tall);
    if (hover >= 0) outline(context, wide, tall, rows, cols, hover);
  };
  const tell = () => {
    const count = hidden.reduce((a, b) => a + b, 0);
    const ms = model.get('milliseconds');
    const parts = [`${count} of ${n} patches hidden (${percent(count / n)})`];
    if (predicts && !model.get('error'))
      parts.push(`mean squared error on them ${model.get('mse').toFixed(4)} (${model.get('pixels')} pixels)`);
    if (model.get('live') && ms) parts.push(`${ms.toFixed(0)} ms`);
    ui.say(parts.join(' · '));
    masked.canvas.dataset.hidden = count;
    masked.canvas.dataset.mask = hidden.join('');
  };

  // Painting: the first cell decides whether the stroke hides or reveals;
  // the kernel hears of it when the stroke ends.
  const dab = cell => {
    hidden[cell] = brush;
    redraw();
  };
  const finish = () => {
    painting = false;
    ui.send({hidden: new DataView(hidden.slice().buffer), kind: hand});
    tell();
  };
  const over = cell => {
    hover = cell;
    redraw();
  };
  const tools = paints
    ? {
        hover: over,
        press(cell) {
          painting = true;
          brush = 1 - hidden[cell];
          dab(cell);
        },
        drag(cell) {
          dab(cell);
        },
        release: finish,
        move(cell, event) {
          hover = cell;
          if (event.shiftKey) {
            dab(cell);
            finish();
          } else redraw();
          ui.say(`${where(cell, cols)}: ${hidden[cell] ? 'hidden' : 'visible'}`);
        },
        key(cell) {
          brush = 1 - hidden[cell];
          dab(cell);
          finish();
          ui.say(`${where(cell, cols)}: ${hidden[cell] ? 'hidden' : 'visible'}`);
        },
        focus() {
          hover = masked.cursor();
          redraw();
        },
      }
    : {hover: over, move: over};

  const common = {rows, cols, ratio: height / width};
  const input = pane(ui, {
    ...common,
    caption: 'input',
    draw: image(picture),
    on: {hover: over, move: over},
  });
  const masked = pane(ui, {
    ...common,
    caption: paints ? 'masked (paint here)' : 'masked',
    cls: 'vsl-paint vsl-mask',
    on: tools,
    label: paints
      ? 'masked picture: arrow keys move, space hides or reveals a patch, shift and arrow paint'
      : 'masked picture',
    draw(context, wide, tall) {
      context.drawImage(picture(), 0, 0, wide, tall);
      for (let i = 0; i < n; i++)
        if (hidden[i]) {
          const x = Math.round(((i % cols) * wide) / cols);
          const y = Math.round((Math.floor(i / cols) * tall) / rows);
          context.fillStyle = '#8a8a8a';
          context.fillRect(x, y, Math.ceil(wide / cols), Math.ceil(tall / rows));
          context.strokeStyle = '#9c9c9c';
          context.lineWidth = 1;
          context.strokeRect(x + 0.5, y + 0.5, wide / cols - 1, tall / rows - 1);
        }
      if (hover >= 0)
        outline(context, wide, tall, rows, cols, hover, masked.canvas.dataset.focus === 'true' ? '#e69f00' : '#fff');
    },
  });
  const panes = [input, masked];
  const scale = legend(VIRIDIS);
  if (predicts) {
    const names = [
      ['prediction', 'prediction (everywhere)'],
      ['pasted', 'visible patches pasted'],
      ['error', 'absolute error'],
    ];
    names.forEach(([key, caption], i) => {
      const p = pane(ui, {
        ...common,
        caption,
        draw: image(() => results[i]),
        on: {hover: over, move: over},
        cls: `vsl-${key}`,
      });
      if (key === 'error') p.el.append(scale.el);
      panes.push(p);
    });
  }
  const redraw = () => panes.forEach(p => p.redraw());

  // `results` holds prediction and pasted in colour, then the error as one byte a pixel.
  const load = () => {
    if (!painting) hidden = Uint8Array.from(bytes(model, 'hidden'));
    const data = bytes(model, 'results');
    const size = height * width;
    if (predicts && data.length === size * 7) {
      const error = data.subarray(size * 6);
      results = [
        bitmap(data, height, width),
        bitmap(data, height, width, size * 3),
        heat(error, height, width, VIRIDIS, v => v / 255),
      ];
      scale.set('0', model.get('error_top').toFixed(2));
    }
    masked.canvas.dataset.version = model.get('answered');
    redraw();
    tell();
  };

  const offHand = v => (model.get('kind') === hand ? {kind: 'random', ...v} : v);
  const bar = toolbar(
    slider(ui, 'ratio', {
      label: 'hide',
      min: 0,
      max: 0.95,
      step: 0.05,
      format: percent,
      changes: ratio => offHand({ratio}),
    }),
    radio(ui, 'kind', {
      label: 'kind',
      options: [...plainOptions('random', 'block', 'grid'), ['group', 'groups'], [hand, hand]],
    }),
    number(ui, 'seed', {label: 'seed'}),
    predicts ? radio(ui, 'pixels', {label: 'pixels', options: plainOptions('estimated', 'true')}) : null,
  );
  ui.add(bar, thumbnails(ui, pictures), paneRow(panes.map(p => p.el)));
  ui.on('hidden results picture answered error', load);
  load();
  return () => ui.close();
}
export default { render };
