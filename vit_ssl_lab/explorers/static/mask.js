// MaskExplorer and ReconstructionExplorer: paint what is hidden, see what comes back.
function render({model, el}) {
  const predicts = model.get('predicts'), hand = 'by hand';
  const ui = shell(model, el, predicts ? 'Reconstruction explorer' : 'Mask explorer');
  const [rows, cols] = model.get('grid'), [, height, width] = model.get('shape'), n = rows * cols;
  const pictures = gallery(model);
  const paints = ui.can('hidden');
  let hidden = Uint8Array.from(bytes(model, 'hidden')), hover = -1, brush = 1, results = [], painting = false;

  const picture = () => pictures[model.get('picture')];
  const image = get => (g, w, t) => { const source = get(); if (source) g.drawImage(source, 0, 0, w, t); if (hover >= 0) outline(g, w, t, rows, cols, hover); };
  const tell = () => {
    const count = hidden.reduce((a, b) => a + b, 0), ms = model.get('milliseconds'), parts = [`${count} of ${n} patches hidden (${percent(count / n)})`];
    if (predicts && !model.get('error')) parts.push(`mean squared error on them ${model.get('mse').toFixed(4)} (${model.get('pixels')} pixels)`);
    if (model.get('live') && ms) parts.push(`${ms.toFixed(0)} ms`);
    ui.say(parts.join(' · '));
    masked.canvas.dataset.hidden = count;
    masked.canvas.dataset.mask = hidden.join('');
  };

  // Painting: the first cell decides whether the stroke hides or reveals; the kernel hears of it when the stroke ends.
  const dab = cell => { hidden[cell] = brush; redraw(); };
  const finish = () => { painting = false; ui.send({hidden: new DataView(hidden.slice().buffer), kind: hand}); tell(); };
  const over = cell => { hover = cell; redraw(); };
  const tools = paints ? {
    hover: over,
    press(cell) { painting = true; brush = 1 - hidden[cell]; dab(cell); },
    drag(cell) { dab(cell); },
    release: finish,
    move(cell, e) { hover = cell; if (e.shiftKey) { dab(cell); finish(); } else redraw(); ui.say(`${where(cell, cols)}: ${hidden[cell] ? 'hidden' : 'visible'}`); },
    key(cell) { brush = 1 - hidden[cell]; dab(cell); finish(); ui.say(`${where(cell, cols)}: ${hidden[cell] ? 'hidden' : 'visible'}`); },
    focus() { hover = masked.cursor(); redraw(); },
  } : {hover: over, move(cell) { hover = cell; redraw(); }};

  const common = {rows, cols, ratio: height / width};
  const input = pane(ui, {...common, caption: 'input', draw: image(picture), on: {hover: over, move(cell) { hover = cell; redraw(); }}});
  const masked = pane(ui, {...common, caption: paints ? 'masked (paint here)' : 'masked', cls: 'vsl-paint vsl-mask', on: tools,
    label: paints ? 'masked picture: arrow keys move, space hides or reveals a patch, shift and arrow paint' : 'masked picture',
    draw(g, w, t) {
      g.drawImage(picture(), 0, 0, w, t);
      for (let i = 0; i < n; i++) if (hidden[i]) {
        const x = Math.round((i % cols) * w / cols), y = Math.round(Math.floor(i / cols) * t / rows);
        g.fillStyle = '#8a8a8a'; g.fillRect(x, y, Math.ceil(w / cols), Math.ceil(t / rows));
        g.strokeStyle = '#9c9c9c'; g.lineWidth = 1; g.strokeRect(x + .5, y + .5, w / cols - 1, t / rows - 1);
      }
      if (hover >= 0) outline(g, w, t, rows, cols, hover, masked.canvas.dataset.focus === 'true' ? '#e69f00' : '#fff');
    }});
  const panes = [input, masked];
  const scale = legend(VIRIDIS);
  if (predicts) {
    const names = [['prediction', 'prediction (everywhere)'], ['pasted', 'visible patches pasted'], ['error', 'absolute error']];
    names.forEach(([key, caption], i) => {
      const p = pane(ui, {...common, caption, draw: image(() => results[i]), on: {hover: over, move(cell) { hover = cell; redraw(); }}, cls: `vsl-${key}`});
      if (key === 'error') p.el.append(scale.el);
      panes.push(p);
    });
  }
  const redraw = () => panes.forEach(p => p.redraw());

  // `results` holds prediction and pasted in colour, then the error as one byte a pixel.
  const load = () => {
    if (!painting) hidden = Uint8Array.from(bytes(model, 'hidden'));
    const data = bytes(model, 'results'), size = height * width;
    if (predicts && data.length === size * 7) {
      const error = data.subarray(size * 6);
      results = [bitmap(data, height, width), bitmap(data, height, width, size * 3), heat(error, height, width, VIRIDIS, v => v / 255)];
      scale.set('0', model.get('error_top').toFixed(2));
    }
    masked.canvas.dataset.version = model.get('answered');
    redraw(); tell();
  };

  const offHand = v => model.get('kind') === hand ? {kind: 'random', ...v} : v;
  const bar = h('div', {class: 'vsl-bar'},
    slider(ui, 'ratio', {label: 'hide', min: 0, max: .95, step: .05, format: percent, changes: ratio => offHand({ratio})}),
    radio(ui, 'kind', {label: 'kind', options: [['random', 'random'], ['block', 'block'], ['grid', 'grid'], ['group', 'groups'], [hand, hand]]}),
    number(ui, 'seed', {label: 'seed'}),
    predicts ? radio(ui, 'pixels', {label: 'pixels', options: [['estimated', 'estimated'], ['true', 'true']]}) : null);
  const thumbs = chooser(ui, pictures);
  ui.body.append(bar, thumbs ? h('div', {class: 'vsl-bar'}, thumbs) : '', h('div', {class: 'vsl-panes'}, panes.map(p => p.el)));
  ui.on('hidden results picture answered error', load);
  load();
  return () => ui.close();
}
export default { render };
