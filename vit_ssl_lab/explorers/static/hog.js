// HogExplorer: cells over a picture, their histograms as strokes, and the histogram of one cell. The kernel sends votes; normalisation, contrast and brightness are the browser's.
function render({model, el}) {
  const ui = shell(model, el, 'HOG explorer');
  const [, height, width] = model.get('shape'), pictures = gallery(model), COLOURS = ['#d55e00', '#009e73', '#0072b2'];
  let rows = 1, cols = 1, bins = 9, channels = 3, votes = [], hover = -1, top = 1, chosen = 0, input = null, strokes = null;

  const at = (c, k, cell) => votes[(c * bins + k) * rows * cols + cell];
  // The numbers of one cell and channel after the chosen normalisation. Contrast multiplies every vote; brightness moves none.
  const histogram = (c, cell) => {
    const raw = Array.from({length: bins}, (_, k) => at(c, k, cell) * model.get('contrast')), norm = model.get('norm');
    const size = norm === 'l2' ? Math.hypot(...raw) : norm === 'l1' ? raw.reduce((a, b) => a + b, 0) : 1;
    return raw.map(v => v / Math.max(size, 1e-12));
  };
  const all = cell => Array.from({length: channels}, (_, c) => histogram(c, cell));
  const mean = cell => { const h = all(cell); return h[0].map((_, k) => h.reduce((s, v) => s + v[k], 0) / channels); };
  const cellAt = () => hover >= 0 ? hover : chosen;

  const image = (g, w, t) => {
    const a = model.get('contrast'), b = model.get('brightness'), source = pictures[model.get('picture')].getContext('2d').getImageData(0, 0, width, height);
    for (let i = 0; i < source.data.length; i++) if (i % 4 < 3) source.data[i] = a * source.data[i] + 255 * b; // clamps by itself: only what is shown, the votes are those of the unclamped picture
    const canvas = h('canvas', {width, height}); canvas.getContext('2d').putImageData(source, 0, 0);
    g.drawImage(canvas, 0, 0, w, t);
  };
  const grid = (g, w, t) => {
    g.strokeStyle = '#fff8'; g.lineWidth = 1;
    for (let r = 1; r < rows; r++) { g.beginPath(); g.moveTo(0, Math.round(r * t / rows) + .5); g.lineTo(w, Math.round(r * t / rows) + .5); g.stroke(); }
    for (let c = 1; c < cols; c++) { g.beginPath(); g.moveTo(Math.round(c * w / cols) + .5, 0); g.lineTo(Math.round(c * w / cols) + .5, t); g.stroke(); }
    outline(g, w, t, rows, cols, cellAt(), '#e69f00');
  };
  // A stroke lies along the edge: at a right angle to the gradient whose angle is atan2(gx, gy).
  const paint = (g, w, t) => {
    g.fillStyle = '#000'; g.fillRect(0, 0, w, t);
    const radius = .46 * Math.min(w / cols, t / rows);
    g.lineWidth = Math.max(1.2, radius / 6); g.lineCap = 'round';
    for (let cell = 0; cell < rows * cols; cell++) {
      const x = (cell % cols + .5) * w / cols, y = (Math.floor(cell / cols) + .5) * t / rows;
      mean(cell).forEach((v, k) => {
        const share = Math.min(1, v / top); if (share < .02) return;
        const angle = (k + .5) * Math.PI / bins, dx = radius * Math.cos(angle), dy = -radius * Math.sin(angle);
        g.strokeStyle = `rgba(255,255,255,${share})`; g.beginPath(); g.moveTo(x - dx, y - dy); g.lineTo(x + dx, y + dy); g.stroke();
      });
    }
  };

  // One cell's histogram, a group of bars a bin and one bar a channel.
  const chart = h('div', {class: 'vsl-hog', role: 'list', 'aria-label': 'histogram of the chosen cell'});
  const fill = () => {
    const cell = cellAt(), numbers = all(cell), scale = model.get('norm') === 'none' ? Math.max(model.get('ceiling'), 1e-12) : 1;
    chart.replaceChildren(...Array.from({length: bins}, (_, k) => {
      const low = Math.round(k * 180 / bins), values = numbers.map(n => n[k]);
      return h('div', {role: 'listitem', 'data-bin': k, 'data-values': values.map(v => v.toFixed(4)).join(' '), 'aria-label': `${low} degrees: ${values.map(v => v.toFixed(2)).join(', ')}`},
        h('div', {class: 'vsl-column'}, values.map((v, c) => h('i', {style: `height: ${100 * Math.min(1, v / scale)}%; left: ${100 * c / channels}%; width: ${96 / channels}%; background: ${channels === 1 ? '#777' : COLOURS[c]}`}))), h('span', {class: 'vsl-number'}, `${low}°`));
    }));
    const m = mean(cell), best = m.indexOf(Math.max(...m)), flat = Math.max(...m) < 1e-9, sum = numbers[0].reduce((s, v) => s + v * v, 0);
    Object.assign(ui.root.dataset, {cell, bin: flat ? -1 : best, length: Math.sqrt(sum).toFixed(4), norm: model.get('norm')});
    ui.say(`${where(cell, cols)}: ` + (flat ? 'flat, no votes' : `most votes at ${Math.round(best * 180 / bins)} to ${Math.round((best + 1) * 180 / bins)}°, length of a channel's histogram ${Math.sqrt(sum).toFixed(2)}`) + ` · ${rows} x ${cols} cells`);
  };
  const panes = h('div', {class: 'vsl-panes', style: '--pane: 264px'});
  const look = () => { input.redraw(); strokes.redraw(); fill(); };
  const build = () => {
    const arrived = floats(model, 'votes'), dims = model.get('dims');
    if (arrived.length !== dims.reduce((a, b) => a * b, 1)) return; // traits arrive one after the other
    const same = input && String(dims) === String([channels, bins, rows, cols]);
    votes = arrived;
    if (same) return rescale(); // the panes stay, and with them the focus
    [channels, bins, rows, cols] = dims; hover = -1;
    chosen = Math.min(chosen, rows * cols - 1);
    const on = {hover(cell) { hover = cell; look(); }, press(cell) { chosen = cell; look(); }, move(cell) { chosen = cell; hover = -1; look(); }, focus() { input.cursor(chosen); strokes.cursor(chosen); }};
    const common = {rows, cols, ratio: height / width, on, label: 'cells: point at one, or move with the arrow keys, to read its histogram'};
    input = pane(ui, {...common, caption: 'picture and cells', cls: 'vsl-cells', draw(g, w, t) { image(g, w, t); grid(g, w, t); }});
    strokes = pane(ui, {...common, caption: 'histograms, strokes along the edges', cls: 'vsl-strokes', draw(g, w, t) { paint(g, w, t); outline(g, w, t, rows, cols, cellAt(), '#e69f00'); }});
    panes.replaceChildren(input.el, strokes.el, h('figure', {}, h('figcaption', {}, channels === 1 ? 'votes of the outlined cell, by angle' : 'votes of the outlined cell, by angle and colour'), chart));
    rescale();
  };
  // What is drawn brightest stays the same while the contrast moves, so that votes fade without normalisation.
  const rescale = () => { top = model.get('norm') === 'none' ? model.get('ceiling') : model.get('norm') === 'l1' ? .5 : .8; look(); };
  const range = (name, label, low, high, format) => {
    const slide = h('input', {type: 'range', min: low, max: high, step: .05, 'data-trait': name, 'aria-label': label}), out = h('output');
    const read = () => { slide.value = model.get(name); out.textContent = format(model.get(name)); slide.setAttribute('aria-valuetext', out.textContent); };
    slide.addEventListener('input', () => { ui.send({[name]: +slide.value}, {busy: false}); read(); look(); });
    ui.on(name, () => { read(); look(); }); read();
    return h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, label), slide, out);
  };
  const thumbs = chooser(ui, pictures);
  ui.body.append(h('div', {class: 'vsl-bar'}, radio(ui, 'norm', {label: 'normalise each cell', options: [['l2', 'L2'], ['l1', 'L1'], ['none', 'not']], busy: false}),
      model.get('sizes').length > 1 ? radio(ui, 'cell', {label: 'cell', options: model.get('sizes').map(s => [s, `${s} px`])}) : null, radio(ui, 'bins', {label: 'bins', options: [6, 9, 12].map(b => [b, String(b)])})),
    h('div', {class: 'vsl-bar'}, range('contrast', 'contrast', .1, 2, v => `× ${v.toFixed(2)}`), range('brightness', 'brightness', -.5, .5, v => v.toFixed(2))),
    thumbs ? h('div', {class: 'vsl-bar'}, thumbs) : '', panes);
  ui.on('votes dims ceiling', build); ui.on('picture', () => input.redraw());
  ui.on('norm', rescale);
  build();
  return () => ui.close();
}
export default { render };
