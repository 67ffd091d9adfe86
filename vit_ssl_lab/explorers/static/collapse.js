// CollapseExplorer: a tiny run, live. The kernel trains and sends its state;
// switches, start, stop and reset are traits.
function render({model, el}) {
  const ui = shell(model, el, 'Collapse explorer');
  const CELLS = 100;
  const WORDS = {collapsed: '#d55e00', narrow: '#b38600', healthy: '#009e73'};
  const SWITCHES = [
    ['stop_gradient', 'stop-gradient'],
    ['predictor', 'predictor'],
    ['centre', 'centring'],
    ['momentum', 'momentum'],
  ];
  let history = [];
  let hover = -1;
  let colours = {};

  // Charts: one line of text sizes and colours for all of them; canvases have two pixels a CSS pixel.
  const W = 600;
  const H = 260;
  const LEFT = 64;
  const RIGHT = 12;
  const TOP = 12;
  const BOTTOM = 40;
  const box = {x: t => LEFT + t * (W - LEFT - RIGHT), y: t => H - BOTTOM - t * (H - TOP - BOTTOM)};
  const ink = () => {
    const style = getComputedStyle(ui.root);
    colours = {fg: style.color, accent: '#1f88c4', mark: '#d55e00'};
  };
  const axes = (context, {low, high, ticks, format = String, xmax, xlabel, xticks}) => {
    context.font = '22px system-ui, sans-serif';
    context.fillStyle = context.strokeStyle = colours.fg;
    context.lineWidth = 1;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const v of ticks) {
      const y = box.y((v - low) / (high - low));
      context.globalAlpha = 0.18;
      context.fillRect(LEFT, y, W - LEFT - RIGHT, 1.5);
      context.globalAlpha = 0.75;
      context.fillText(format(v), LEFT - 8, y);
    }
    context.textBaseline = 'top';
    context.globalAlpha = 0.75;
    for (const v of xticks) {
      context.textAlign = v === xticks[0] ? 'left' : 'right';
      context.fillText(v, box.x(v / xmax), H - BOTTOM + 10);
    }
    context.textAlign = 'center';
    context.fillText(xlabel, box.x(0.5), H - BOTTOM + 10);
    context.globalAlpha = 1;
  };
  const nice = top => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(s => top / s <= 4) || top / 2;
  const ladder = (low, high) => {
    const s = nice((high - low) * 100) / 100;
    const out = [];
    for (let v = Math.ceil(low / s) * s; v <= high + 1e-9; v += s) out.push(+v.toFixed(6));
    return out;
  };
  const last = () => (history.length ? history[history.length - 1] : [0, NaN, 0, 0]);
  const xmax = () => Math.max(100, last()[0]);
  const shownRecord = () => {
    const m = hover >= 0 ? hover : model.get('moment');
    return m < 0 || m >= history.length ? history.length - 1 : m;
  };
  const recordAt = cell => {
    const step = ((cell + 0.5) / CELLS) * ((xmax() * W) / (W - LEFT - RIGHT)) - (LEFT / (W - LEFT - RIGHT)) * xmax();
    let best = 0;
    history.forEach((r, i) => {
      if (Math.abs(r[0] - step) < Math.abs(history[best][0] - step)) best = i;
    });
    return best;
  };
  const pin = i => {
    hover = -1;
    ui.send({moment: i >= history.length - 1 ? -1 : i}, {busy: false, delay: 30});
    look();
  };
  const curve = (column, caption, low, high, format) => {
    const p = pane(ui, {
      caption,
      rows: 1,
      cols: CELLS,
      ratio: H / W,
      cls: 'vsl-chart',
      label: `${caption} over the steps: point to read, click or use the arrow keys to look back`,
      draw(context) {
        const top = high();
        const names = ladder(low, top);
        axes(context, {
          low,
          high: top,
          ticks: names,
          format,
          xmax: xmax(),
          xlabel: 'step',
          xticks: [0, Math.round(xmax())],
        });
        const y = v => box.y(Math.min(1, Math.max(0, (v - low) / (top - low))));
        context.strokeStyle = colours.mark;
        context.setLineDash([6, 6]);
        context.lineWidth = 2;
        for (const [step] of model.get('marks')) {
          line(context, box.x(step / xmax()), TOP, box.x(step / xmax()), H - BOTTOM);
        }
        context.setLineDash([]);
        if (column === 1)
          model.get('marks').forEach(([step, text]) => {
            // said once, along the line
            context.save();
            context.translate(box.x(step / xmax()) + 4, TOP);
            context.rotate(Math.PI / 2);
            context.font = '19px system-ui, sans-serif';
            context.fillStyle = colours.mark;
            context.textAlign = 'left';
            context.textBaseline = 'bottom';
            context.fillText(text, 0, 0);
            context.restore();
          });
        context.strokeStyle = colours.accent;
        context.lineWidth = 4;
        context.lineJoin = 'round';
        context.beginPath();
        let pen = false;
        for (const r of history)
          if (!Number.isNaN(r[column])) {
            context[pen ? 'lineTo' : 'moveTo'](box.x(r[0] / xmax()), y(r[column]));
            pen = true;
          }
        context.stroke();
        const r = history[shownRecord()];
        if (!r || Number.isNaN(r[column])) return;
        const x = box.x(r[0] / xmax());
        context.strokeStyle = colours.fg;
        context.globalAlpha = 0.5;
        context.lineWidth = 2;
        line(context, x, TOP, x, H - BOTTOM);
        context.globalAlpha = 1;
        context.fillStyle = colours.accent;
        disc(context, x, y(r[column]), 8);
        context.fillStyle = colours.fg;
        context.font = '600 24px system-ui, sans-serif';
        context.textBaseline = 'bottom';
        context.textAlign = x > W * 0.7 ? 'right' : 'left';
        context.fillText(format(r[column], true), x + (x > W * 0.7 ? -12 : 12), Math.max(TOP + 26, y(r[column]) - 8));
      },
      on: {
        hover(cell) {
          hover = cell < 0 || !history.length ? -1 : recordAt(cell);
          look();
        },
        press(cell) {
          pin(recordAt(cell));
        },
        move(cell, event) {
          pin(
            Math.min(history.length - 1, Math.max(0, shownRecord() + ({ArrowRight: 1, ArrowUp: 1}[event.key] || -1))),
          );
        },
        key() {
          pin(history.length - 1);
        },
      },
    });
    p.canvas.width = W;
    p.canvas.height = H;
    return p;
  };
  const two = (v, exact) => (exact ? v.toFixed(2) : String(v));
  const rankTop = () => Math.max(4, ...history.map(r => r[3])) * 1.12;
  const curves = [
    curve(
      1,
      'loss: minus the cosine, -1 is agreement',
      -1.05,
      () => Math.max(0, ...history.map(r => r[1] || -1)),
      two,
    ),
    curve(2, 'std, mean of all dimensions', 0, () => 1.1, two),
    curve(3, 'effective rank', 0, rankTop, (v, exact) => (exact ? v.toFixed(1) : String(v))),
  ];

  const bars = (name, caption, high, ticks, xlabel, level = null) => {
    const p = pane(ui, {
      caption,
      rows: 1,
      cols: 1,
      ratio: H / W,
      cls: 'vsl-chart',
      draw(context) {
        const values = floats(model, name);
        const n = values.length;
        axes(context, {low: 0, high, ticks, xmax: n || 1, xlabel, xticks: [1, n]});
        const w = (W - LEFT - RIGHT) / Math.max(1, n);
        context.fillStyle = colours.accent;
        values.forEach((v, i) => {
          const y = box.y(Math.min(1, v / high));
          context.fillRect(LEFT + i * w + w * 0.12, y, w * 0.76, H - BOTTOM - y);
        });
        if (level) {
          context.strokeStyle = colours.fg;
          context.lineWidth = 2;
          context.setLineDash([4, 6]);
          line(context, LEFT, box.y(level / high), W - RIGHT, box.y(level / high));
          context.setLineDash([]);
        }
      },
    });
    p.canvas.width = W;
    p.canvas.height = H;
    return p;
  };
  const spread = bars('stds', 'std of each dimension, 1 is spread out', 1.6, [0, 0.5, 1, 1.5], 'dimension', 1);
  const spectrum = bars('values', 'singular values, the largest is 1', 1.05, [0, 0.5, 1], 'number');
  const cloud = pane(ui, {
    caption: 'unit vectors on two main axes',
    rows: 1,
    cols: 1,
    ratio: 1,
    cls: 'vsl-chart vsl-cloud',
    label: 'the vectors of 256 pictures as points, coloured by class',
    draw(context, wide, tall) {
      const points = floats(model, 'points');
      const labels = model.get('labels');
      const r = wide / 2 - 6;
      const at = v => wide / 2 + v * r;
      context.strokeStyle = colours.fg;
      context.globalAlpha = 0.35;
      context.lineWidth = 2;
      ring(context, wide / 2, tall / 2, r);
      context.globalAlpha = 0.8;
      for (let i = 0; i < points.length / 2; i++) {
        context.fillStyle = CLASS_COLOURS[(labels[i] ?? 0) % CLASS_COLOURS.length];
        disc(context, at(points[2 * i]), at(-points[2 * i + 1]), 6);
      }
      context.globalAlpha = 1;
    },
  });
  cloud.canvas.width = cloud.canvas.height = 400;

  // What is minimised, under the present switches.
  const formula = h('p', {class: 'vsl-formula'});
  const sentence = h('p', {class: 'vsl-verdict'});
  const write = () => {
    const on = Object.fromEntries(SWITCHES.map(([name]) => [name, model.get(name)]));
    const prediction = on.predictor ? 'h(z1)' : 'z1';
    let target = on.momentum ? 'momentum(x2)' : 'z2';
    if (on.centre) target += ' − mean';
    if (on.stop_gradient) target = `stop( ${target} )`;
    const text = `loss = − cos( ${prediction}, ${target} ), and the other way round`;
    const but = on.centre ? ' but the centre' : '';
    const aside = ` (no gradient reaches a momentum encoder, so the stop-gradient changes nothing${but})`;
    formula.textContent = on.momentum && !on.stop_gradient ? text + aside : text;
    ui.root.dataset.formula = text;
  };
  let word = null;
  const look = () => {
    if (!history.length) return;
    const r = history[shownRecord()];
    const live = model.get('moment') < 0 && hover < 0;
    curves.forEach(p => p.redraw());
    Object.assign(ui.root.dataset, {
      step: model.get('step'),
      records: history.length,
      shown: r[0],
      std: r[2].toFixed(4),
      rank: r[3].toFixed(3),
      running: model.get('running'),
    });
    const loss = Number.isNaN(r[1]) ? 'not known yet' : r[1].toFixed(2);
    const facts = `step ${r[0]}: loss ${loss}, std ${r[2].toFixed(2)}, effective rank ${r[3].toFixed(1)}`;
    if (!live) return ui.say(facts);
    const now = model.get('sentence').split(':')[0];
    const running = model.get('running');
    if (word === now + running) return; // said already: a screen reader must not hear it at every record
    word = now + running;
    const speed = model.get('speed');
    const pace = speed ? `, about ${Math.round(speed)} steps a second` : '';
    ui.say(`${running ? `training${pace}` : `stopped after ${model.get('step')} steps`}: ${now}`);
  };
  const load = () => {
    const data = floats(model, 'history');
    history = Array.from({length: data.length / 4}, (_, i) => [...data.subarray(4 * i, 4 * i + 4)]);
    ink();
    spread.redraw();
    spectrum.redraw();
    cloud.redraw();
    const text = model.get('sentence');
    const moment = model.get('moment');
    const step = history.length
      ? history[moment < 0 ? history.length - 1 : Math.min(moment, history.length - 1)][0]
      : 0;
    sentence.textContent = `step ${step} · ${text}`;
    sentence.dataset.word = text.split(':')[0];
    sentence.style.borderColor = WORDS[sentence.dataset.word] || 'transparent';
    back.hidden = moment < 0;
    look();
  };

  const start = pushButton({
    class: 'vsl-start',
    disabled: !ui.can('running'),
    onclick: () => ui.send({running: !model.get('running')}, {busy: false, delay: 0}),
  });
  const showRunning = () => {
    const on = model.get('running');
    const idle = model.get('step') ? 'go on' : 'start';
    start.textContent = on ? 'stop' : idle;
    start.setAttribute('aria-pressed', on);
    look();
  };
  const reset = pushButton(
    {
      class: 'vsl-reset',
      disabled: !ui.can('resets'),
      onclick: () => ui.send({resets: model.get('resets') + 1}, {delay: 0}),
    },
    'reset',
  );
  const back = pushButton({class: 'vsl-latest', onclick: () => pin(history.length - 1)}, 'latest step');
  const toggles = SWITCHES.map(([name, label]) => {
    const button = pushButton(
      {
        role: 'switch',
        'data-trait': name,
        disabled: !ui.can(name),
        onclick: () => {
          ui.send({[name]: !model.get(name)}, {busy: false, delay: 0});
          read();
        },
      },
      h('i', {'aria-hidden': 'true'}),
      label,
    );
    const read = () => {
      button.setAttribute('aria-checked', model.get(name));
      write();
    };
    ui.on(name, read);
    read();
    return button;
  });
  ui.add(
    toolbar(
      start,
      reset,
      number(ui, 'seed', {label: 'seed'}),
      h('span', {class: 'vsl-switches', role: 'group', 'aria-label': 'switches'}, toggles),
    ),
    formula,
    toolbar(sentence, back),
    h(
      'div',
      {class: 'vsl-panes vsl-charts'},
      curves.map(p => p.el),
      spread.el,
      spectrum.el,
      cloud.el,
    ),
    remark(
      'Dashed lines: a switch was thrown. Click a curve, or use the arrow keys on it, to look back; ' +
        'the lower row shows that moment. The circle is the sphere on which the vectors lie, seen from outside, ' +
        'with their mean at its middle.',
    ),
  );
  ui.on('history answered points', load);
  ui.on('moment', load);
  ui.on('running', showRunning);
  ui.on('step', showRunning);
  ui.on('marks', look);
  load();
  showRunning();
  return () => ui.close();
}
export default { render };
