// TargetExplorer: one masked picture, and for each target what is asked and what a model says. Masks are painted here, answers come from the kernel.
function render({model, el}) {
  const ui = shell(model, el, 'Target explorer'), hand = 'by hand';
  const [rows, cols] = model.get('grid'), [, height, width] = model.get('shape'), n = rows * cols, names = model.get('targets'), says = model.get('predicts_target');
  const pictures = gallery(model), paints = ui.can('hidden');
  let hidden = Uint8Array.from(bytes(model, 'hidden')), hover = -1, brush = 1, painting = false, shots = [], costs = [];

  const picture = () => pictures[model.get('picture')];
  const frame = (g, w, t) => { if (hover >= 0) outline(g, w, t, rows, cols, hover, '#e69f00'); };
  const holes = (g, w, t, f) => { for (let i = 0; i < n; i++) if (hidden[i]) f(Math.round((i % cols) * w / cols), Math.round(Math.floor(i / cols) * t / rows), Math.ceil(w / cols), Math.ceil(t / rows), i); };
  const over = cell => { hover = cell; redraw(); tell(); };
  const dab = cell => { hidden[cell] = brush; redraw(); };
  const finish = () => { painting = false; ui.send({hidden: new DataView(hidden.slice().buffer), kind: hand}); tell(); };
  const look = {hover: over, press: over, move: over, focus() { over(input.cursor()); }};
  const tools = paints ? {
    hover: over,
    press(cell) { painting = true; brush = 1 - hidden[cell]; dab(cell); },
    drag: dab,
    release: finish,
    move(cell, e) { hover = cell; if (e.shiftKey) { dab(cell); finish(); } else redraw(); tell(); },
    key(cell) { brush = 1 - hidden[cell]; dab(cell); finish(); },
    focus() { over(masked.cursor()); },
  } : look;
  const common = {rows, cols, ratio: height / width};
  const input = pane(ui, {...common, caption: 'input', on: look, label: 'input: point at a patch to outline it everywhere', draw(g, w, t) { g.drawImage(picture(), 0, 0, w, t); frame(g, w, t); }});
  const masked = pane(ui, {...common, caption: paints ? 'masked (paint here)' : 'masked', cls: 'vsl-paint vsl-mask', on: tools, label: paints ? 'masked picture: arrow keys move, space hides or reveals a patch, shift and arrow paint' : 'masked picture',
    draw(g, w, t) { g.drawImage(picture(), 0, 0, w, t); holes(g, w, t, (x, y, a, b) => { g.fillStyle = '#8a8a8a'; g.fillRect(x, y, a, b); }); frame(g, w, t); }});
  const panes = [input, masked];

  // A column a target: the truth of every patch; under it what the model says, in the holes or everywhere.
  const columns = names.map((name, k) => {
    const truth = pane(ui, {...common, caption: `${name}: asked`, on: look, cls: 'vsl-truth', label: `the target ${name} of every patch`, draw(g, w, t) { if (shots[2 * k]) g.drawImage(shots[2 * k], 0, 0, w, t); frame(g, w, t); }});
    const guess = !says[k] ? null : pane(ui, {...common, caption: `${name}: said`, on: look, cls: 'vsl-guess', label: `what the model of ${name} says`, draw(g, w, t) {
      const [a, b] = [shots[2 * k], shots[2 * k + 1]];
      if (!b) return;
      if (model.get('everywhere')) g.drawImage(b, 0, 0, w, t);
      else { g.globalAlpha = .3; g.drawImage(a, 0, 0, w, t); g.globalAlpha = 1; holes(g, w, t, (x, y, u, v, i) => g.drawImage(b, (i % cols) * b.width / cols, Math.floor(i / cols) * b.height / rows, b.width / cols, b.height / rows, x, y, u, v)); }
      frame(g, w, t);
    }});
    panes.push(truth, ...(guess ? [guess] : []));
    const note = h('p', {class: 'vsl-note', 'data-target': name});
    return {name, k, note, el: h('div', {class: 'vsl-target'}, truth.el, guess ? guess.el : '', note)};
  });
  const redraw = () => panes.forEach(p => p.redraw());
  const tell = () => {
    const count = hidden.reduce((a, b) => a + b, 0), ms = model.get('milliseconds'), constants = model.get('constants');
    ui.say([`${count} of ${n} patches hidden (${percent(count / n)})`, ...(hover >= 0 ? [`${where(hover, cols)}: ${hidden[hover] ? 'hidden' : 'visible'}`] : []), ...(model.get('live') && ms ? [`${ms.toFixed(0)} ms`] : [])].join(' · '));
    for (const {k, note} of columns) {
      if (!says[k]) { note.textContent = 'no model'; continue; }
      const own = costs.subarray(k * n, (k + 1) * n), hurt = own.filter((_, i) => hidden[i]), mean = hurt.length ? hurt.reduce((a, b) => a + b, 0) / hurt.length : 0;
      note.textContent = `cost of hidden patches ${mean.toFixed(3)}, the best constant's ${constants[k].toFixed(3)}` + (hover >= 0 ? `; this patch ${own[hover].toFixed(3)}` : '');
      note.dataset.cost = mean.toFixed(4); note.dataset.here = hover >= 0 ? own[hover].toFixed(4) : '';
    }
    masked.canvas.dataset.hidden = count; masked.canvas.dataset.mask = hidden.join(''); ui.root.dataset.hover = hover;
  };
  const load = () => {
    if (!painting) hidden = Uint8Array.from(bytes(model, 'hidden'));
    const data = bytes(model, 'results'), [t, w] = model.get('size'), size = t * w * 3;
    if (data.length === 2 * names.length * size) shots = Array.from({length: 2 * names.length}, (_, i) => i % 2 && !says[i >> 1] ? null : bitmap(data, t, w, i * size));
    costs = floats(model, 'costs');
    redraw(); tell();
  };
  const offHand = v => model.get('kind') === hand ? {kind: 'block', ...v} : v, thumbs = chooser(ui, pictures);
  ui.body.append(h('div', {class: 'vsl-bar'}, slider(ui, 'ratio', {label: 'hide', min: 0, max: .95, step: .05, format: percent, changes: ratio => offHand({ratio})}),
      radio(ui, 'kind', {label: 'kind', options: [['block', 'block'], ['random', 'random'], ['grid', 'grid'], [hand, hand]]}), number(ui, 'seed', {label: 'seed'}),
      radio(ui, 'everywhere', {label: 'prediction', options: [[false, 'in the holes'], [true, 'everywhere']], busy: false})),
    thumbs ? h('div', {class: 'vsl-bar'}, thumbs) : '', h('div', {class: 'vsl-panes'}, h('div', {class: 'vsl-target'}, input.el, masked.el), columns.map(c => c.el)));
  ui.on('hidden results picture answered error', load);
  ui.on('everywhere', redraw);
  load();
  return () => ui.close();
}
export default { render };
