// CollapseExplorer: a tiny run, live. The kernel trains and sends its state; switches, start, stop and reset are traits.
function render({model, el}) {
  const ui = shell(model, el, 'Collapse explorer');
  const CELLS = 100, COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#777777', '#8c564b', '#9467bd', '#bcbd22'], WORDS = {collapsed: '#d55e00', narrow: '#b38600', healthy: '#009e73'};
  const SWITCHES = [['stop_gradient', 'stop-gradient'], ['predictor', 'predictor'], ['centre', 'centring'], ['momentum', 'momentum']];
  let history = [], hover = -1, colours = {};

  // Charts: one line of text sizes and colours for all of them; canvases have two pixels a CSS pixel.
  const W = 600, H = 260, LEFT = 64, RIGHT = 12, TOP = 12, BOTTOM = 40;
  const box = {x: t => LEFT + t * (W - LEFT - RIGHT), y: t => H - BOTTOM - t * (H - TOP - BOTTOM)};
  const ink = () => { const style = getComputedStyle(ui.root); colours = {fg: style.color, accent: '#1f88c4', mark: '#d55e00'}; };
  const axes = (g, {low, high, ticks, format = String, xmax, xlabel, xticks}) => {
    g.font = '22px system-ui, sans-serif'; g.fillStyle = g.strokeStyle = colours.fg; g.lineWidth = 1;
    g.textAlign = 'right'; g.textBaseline = 'middle';
    for (const v of ticks) {
      const y = box.y((v - low) / (high - low));
      g.globalAlpha = .18; g.fillRect(LEFT, y, W - LEFT - RIGHT, 1.5); g.globalAlpha = .75; g.fillText(format(v), LEFT - 8, y);
    }
    g.textBaseline = 'top'; g.globalAlpha = .75;
    for (const v of xticks) { g.textAlign = v === xticks[0] ? 'left' : v === xticks[xticks.length - 1] ? 'right' : 'center'; g.fillText(v, box.x(v / xmax), H - BOTTOM + 10); }
    g.textAlign = 'center'; g.fillText(xlabel, box.x(.5), H - BOTTOM + 10); g.globalAlpha = 1;
  };
  const nice = top => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(s => top / s <= 4) || top / 2;
  const ladder = (low, high) => { const s = nice((high - low) * 100) / 100, out = []; for (let v = Math.ceil(low / s) * s; v <= high + 1e-9; v += s) out.push(+v.toFixed(6)); return out; };
  const last = () => history.length ? history[history.length - 1] : [0, NaN, 0, 0];
  const xmax = () => Math.max(100, last()[0]);
  const shownRecord = () => { const m = hover >= 0 ? hover : model.get('moment'); return m < 0 || m >= history.length ? history.length - 1 : m; };
  const recordAt = cell => {
    const step = (cell + .5) / CELLS * (xmax() * W / (W - LEFT - RIGHT)) - LEFT / (W - LEFT - RIGHT) * xmax();
    let best = 0;
    history.forEach((r, i) => { if (Math.abs(r[0] - step) < Math.abs(history[best][0] - step)) best = i; });
    return best;
  };
  const pin = i => { hover = -1; ui.send({moment: i >= history.length - 1 ? -1 : i}, {busy: false, delay: 30}); look(); };
  const curve = (column, caption, low, high, format) => {
    const p = pane(ui, {caption, rows: 1, cols: CELLS, ratio: H / W, cls: 'vsl-chart', label: `${caption} over the steps: point to read, click or use the arrow keys to look back`, draw(g) {
      const top = high(), names = ladder(low, top);
      axes(g, {low, high: top, ticks: names, format, xmax: xmax(), xlabel: 'step', xticks: [0, Math.round(xmax())]});
      const y = v => box.y(Math.min(1, Math.max(0, (v - low) / (top - low))));
      g.strokeStyle = colours.mark; g.setLineDash([6, 6]); g.lineWidth = 2;
      for (const [step] of model.get('marks')) { g.beginPath(); g.moveTo(box.x(step / xmax()), TOP); g.lineTo(box.x(step / xmax()), H - BOTTOM); g.stroke(); }
      g.setLineDash([]);
      if (column === 1) model.get('marks').forEach(([step, text]) => { // said once, along the line
        g.save(); g.translate(box.x(step / xmax()) + 4, TOP); g.rotate(Math.PI / 2); g.font = '19px system-ui, sans-serif'; g.fillStyle = colours.mark; g.textAlign = 'left'; g.textBaseline = 'bottom'; g.fillText(text, 0, 0); g.restore();
      });
      g.strokeStyle = colours.accent; g.lineWidth = 4; g.lineJoin = 'round'; g.beginPath();
      let pen = false;
      for (const r of history) if (!Number.isNaN(r[column])) { g[pen ? 'lineTo' : 'moveTo'](box.x(r[0] / xmax()), y(r[column])); pen = true; }
      g.stroke();
      const r = history[shownRecord()];
      if (!r || Number.isNaN(r[column])) return;
      const x = box.x(r[0] / xmax());
      g.strokeStyle = colours.fg; g.globalAlpha = .5; g.lineWidth = 2; g.beginPath(); g.moveTo(x, TOP); g.lineTo(x, H - BOTTOM); g.stroke(); g.globalAlpha = 1;
      g.fillStyle = colours.accent; g.beginPath(); g.arc(x, y(r[column]), 8, 0, 7); g.fill();
      g.fillStyle = colours.fg; g.font = '600 24px system-ui, sans-serif'; g.textBaseline = 'bottom'; g.textAlign = x > W * .7 ? 'right' : 'left';
      g.fillText(format(r[column], true), x + (x > W * .7 ? -12 : 12), Math.max(TOP + 26, y(r[column]) - 8));
    }, on: {
      hover(cell) { hover = cell < 0 || !history.length ? -1 : recordAt(cell); look(); },
      press(cell) { pin(recordAt(cell)); },
      move(cell, e) { pin(Math.min(history.length - 1, Math.max(0, shownRecord() + ({ArrowRight: 1, ArrowUp: 1}[e.key] || -1)))); },
      key() { pin(history.length - 1); },
    }});
    p.canvas.width = W; p.canvas.height = H;
    return p;
  };
  const two = (v, exact) => exact ? v.toFixed(2) : String(v);
  const rankTop = () => Math.max(4, ...history.map(r => r[3])) * 1.12;
  const curves = [curve(1, 'loss: minus the cosine, -1 is agreement', -1.05, () => Math.max(0, ...history.map(r => r[1] || -1)), two), curve(2, 'std, mean of all dimensions', 0, () => 1.1, two),
    curve(3, 'effective rank', 0, rankTop, (v, exact) => exact ? v.toFixed(1) : String(v))];

  const bars = (name, caption, high, ticks, xlabel, line = null) => {
    const p = pane(ui, {caption, rows: 1, cols: 1, ratio: H / W, cls: 'vsl-chart', draw(g) {
      const values = floats(model, name), n = values.length;
      axes(g, {low: 0, high, ticks, xmax: n || 1, xlabel, xticks: [1, n]});
      const w = (W - LEFT - RIGHT) / Math.max(1, n);
      g.fillStyle = colours.accent;
      values.forEach((v, i) => { const y = box.y(Math.min(1, v / high)); g.fillRect(LEFT + i * w + w * .12, y, w * .76, H - BOTTOM - y); });
      if (line) { g.strokeStyle = colours.fg; g.lineWidth = 2; g.setLineDash([4, 6]); g.beginPath(); g.moveTo(LEFT, box.y(line / high)); g.lineTo(W - RIGHT, box.y(line / high)); g.stroke(); g.setLineDash([]); }
    }});
    p.canvas.width = W; p.canvas.height = H;
    return p;
  };
  const spread = bars('stds', 'std of each dimension, 1 is spread out', 1.6, [0, .5, 1, 1.5], 'dimension', 1), spectrum = bars('values', 'singular values, the largest is 1', 1.05, [0, .5, 1], 'number');
  const cloud = pane(ui, {caption: 'unit vectors on two main axes', rows: 1, cols: 1, ratio: 1, cls: 'vsl-chart vsl-cloud', label: 'the vectors of 256 pictures as points, coloured by class', draw(g, w, t) {
    const points = floats(model, 'points'), labels = model.get('labels'), r = w / 2 - 6, at = v => w / 2 + v * r;
    g.strokeStyle = colours.fg; g.globalAlpha = .35; g.lineWidth = 2; g.beginPath(); g.arc(w / 2, t / 2, r, 0, 7); g.stroke(); g.globalAlpha = .8;
    for (let i = 0; i < points.length / 2; i++) { g.fillStyle = COLOURS[(labels[i] ?? 0) % COLOURS.length]; g.beginPath(); g.arc(at(points[2 * i]), at(-points[2 * i + 1]), 6, 0, 7); g.fill(); }
    g.globalAlpha = 1;
  }});
  cloud.canvas.width = cloud.canvas.height = 400;

  // What is minimised, under the present switches.
  const formula = h('p', {class: 'vsl-formula'});
  const sentence = h('p', {class: 'vsl-verdict'});
  const write = () => {
    const on = Object.fromEntries(SWITCHES.map(([name]) => [name, model.get(name)]));
    const target = `${on.momentum ? 'slow(x2)' : 'z2'}${on.centre ? ' − mean' : ''}`, text = `loss = − cos( ${on.predictor ? 'h(z1)' : 'z1'}, ${on.stop_gradient ? `stop( ${target} )` : target} ), and the other way round`;
    formula.textContent = text + (on.momentum && !on.stop_gradient ? ' (no gradient reaches a slow copy, so the stop-gradient changes nothing but the centre)'.replace(on.centre ? '' : ' but the centre', '') : '');
    ui.root.dataset.formula = text;
  };
  let word = null;
  const look = () => {
    if (!history.length) return;
    const r = history[shownRecord()], live = model.get('moment') < 0 && hover < 0;
    curves.forEach(p => p.redraw());
    Object.assign(ui.root.dataset, {step: model.get('step'), records: history.length, shown: r[0], std: r[2].toFixed(4), rank: r[3].toFixed(3), running: model.get('running')});
    const facts = `step ${r[0]}: loss ${Number.isNaN(r[1]) ? 'not known yet' : r[1].toFixed(2)}, std ${r[2].toFixed(2)}, effective rank ${r[3].toFixed(1)}`;
    if (!live) return ui.say(facts);
    const now = model.get('sentence').split(':')[0], running = model.get('running');
    if (word !== now + running) { word = now + running; ui.say(`${running ? `training${model.get('speed') ? `, about ${Math.round(model.get('speed'))} steps a second` : ''}` : `stopped after ${model.get('step')} steps`}: ${now}`); }
  };
  const load = () => {
    const data = floats(model, 'history');
    history = Array.from({length: data.length / 4}, (_, i) => [...data.subarray(4 * i, 4 * i + 4)]);
    ink();
    spread.redraw(); spectrum.redraw(); cloud.redraw();
    const text = model.get('sentence'), moment = model.get('moment'), step = history.length ? history[moment < 0 ? history.length - 1 : Math.min(moment, history.length - 1)][0] : 0;
    sentence.textContent = `step ${step} · ${text}`; sentence.dataset.word = text.split(':')[0];
    sentence.style.borderColor = WORDS[sentence.dataset.word] || 'transparent';
    back.hidden = moment < 0;
    look();
  };

  const start = h('button', {type: 'button', class: 'vsl-start', disabled: !ui.can('running'), onclick: () => ui.send({running: !model.get('running')}, {busy: false, delay: 0})});
  const showRunning = () => { const on = model.get('running'); start.textContent = on ? 'stop' : model.get('step') ? 'go on' : 'start'; start.setAttribute('aria-pressed', on); look(); };
  const reset = h('button', {type: 'button', class: 'vsl-reset', disabled: !ui.can('resets'), onclick: () => ui.send({resets: model.get('resets') + 1}, {delay: 0})}, 'reset');
  const back = h('button', {type: 'button', class: 'vsl-latest', onclick: () => pin(history.length - 1)}, 'latest step');
  const toggles = SWITCHES.map(([name, label]) => {
    const button = h('button', {type: 'button', role: 'switch', 'data-trait': name, disabled: !ui.can(name), onclick: () => { ui.send({[name]: !model.get(name)}, {busy: false, delay: 0}); read(); }}, h('i', {'aria-hidden': 'true'}), label);
    const read = () => { button.setAttribute('aria-checked', model.get(name)); write(); };
    ui.on(name, read); read();
    return button;
  });
  ui.body.append(
    h('div', {class: 'vsl-bar'}, start, reset, number(ui, 'seed', {label: 'seed'}), h('span', {class: 'vsl-switches', role: 'group', 'aria-label': 'switches'}, toggles)),
    formula, h('div', {class: 'vsl-bar'}, sentence, back),
    h('div', {class: 'vsl-panes vsl-charts'}, curves.map(p => p.el), spread.el, spectrum.el, cloud.el),
    h('p', {class: 'vsl-note'}, 'Dashed lines: a switch was thrown. Click a curve, or use the arrow keys on it, to look back; the lower row shows that moment. The circle is the sphere on which the vectors lie, seen from outside, with their mean at its middle.'));
  ui.on('history answered points', load);
  ui.on('moment', load);
  ui.on('running', showRunning); ui.on('step', showRunning);
  ui.on('marks', look);
  load(); showRunning();
  return () => ui.close();
}
export default { render };
