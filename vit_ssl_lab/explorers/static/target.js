// TargetExplorer: one masked picture, and for each target what is asked and what a model says.
// Masks are painted here, answers come from the kernel.
function render({model, el}) {
  const ui = shell(model, el, 'Target explorer');
  const hand = 'by hand';
  const [rows, cols] = model.get('grid');
  const [, height, width] = model.get('shape');
  const n = rows * cols;
  const names = model.get('targets');
  const says = model.get('predicts_target');
  const pictures = gallery(model);
  const paints = ui.can('hidden');
  let hidden = Uint8Array.from(bytes(model, 'hidden'));
  let hover = -1;
  let brush = 1;
  let painting = false;
  let shots = [];
  let costs = [];

  const picture = () => pictures[model.get('picture')];
  const frame = (context, wide, tall) => {
    if (hover >= 0) outline(context, wide, tall, rows, cols, hover, '#e69f00');
  };
  const holes = (context, wide, tall, f) => {
    for (let i = 0; i < n; i++)
      if (hidden[i])
        f(
          Math.round(((i % cols) * wide) / cols),
          Math.round((Math.floor(i / cols) * tall) / rows),
          Math.ceil(wide / cols),
          Math.ceil(tall / rows),
          i,
        );
  };
  const over = cell => {
    hover = cell;
    redraw();
    tell();
  };
  const dab = cell => {
    hidden[cell] = brush;
    redraw();
  };
  const finish = () => {
    painting = false;
    ui.send({hidden: new DataView(hidden.slice().buffer), kind: hand});
    tell();
  };
  const look = {
    hover: over,
    press: over,
    move: over,
    focus() {
      over(input.cursor());
    },
  };
  const tools = paints
    ? {
        hover: over,
        press(cell) {
          painting = true;
          brush = 1 - hidden[cell];
          dab(cell);
        },
        drag: dab,
        release: finish,
        move(cell, event) {
          hover = cell;
          if (event.shiftKey) {
            dab(cell);
            finish();
          } else redraw();
          tell();
        },
        key(cell) {
          brush = 1 - hidden[cell];
          dab(cell);
          finish();
        },
        focus() {
          over(masked.cursor());
        },
      }
    : look;
  const common = {rows, cols, ratio: height / width};
  const input = pane(ui, {
    ...common,
    caption: 'input',
    on: look,
    label: 'input: point at a patch to outline it everywhere',
    draw(context, wide, tall) {
      context.drawImage(picture(), 0, 0, wide, tall);
      frame(context, wide, tall);
    },
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
      holes(context, wide, tall, (x, y, a, b) => {
        context.fillStyle = '#8a8a8a';
        context.fillRect(x, y, a, b);
      });
      frame(context, wide, tall);
    },
  });
  const panes = [input, masked];

  // A column a target: the truth of every patch; under it what the model says, in the holes or everywhere.
  const columns = names.map((name, k) => {
    const truth = pane(ui, {
      ...common,
      caption: `${name}: asked`,
      on: look,
      cls: 'vsl-truth',
      label: `the target ${name} of every patch`,
      draw(context, wide, tall) {
        if (shots[2 * k]) context.drawImage(shots[2 * k], 0, 0, wide, tall);
        frame(context, wide, tall);
      },
    });
    const guess = !says[k]
      ? null
      : pane(ui, {
          ...common,
          caption: `${name}: said`,
          on: look,
          cls: 'vsl-guess',
          label: `what the model of ${name} says`,
          draw(context, wide, tall) {
            const [a, b] = [shots[2 * k], shots[2 * k + 1]];
            if (!b) return;
            if (model.get('everywhere')) context.drawImage(b, 0, 0, wide, tall);
            else {
              context.globalAlpha = 0.3;
              context.drawImage(a, 0, 0, wide, tall);
              context.globalAlpha = 1;
              holes(context, wide, tall, (x, y, u, v, i) =>
                context.drawImage(
                  b,
                  ((i % cols) * b.width) / cols,
                  (Math.floor(i / cols) * b.height) / rows,
                  b.width / cols,
                  b.height / rows,
                  x,
                  y,
                  u,
                  v,
                ),
              );
            }
            frame(context, wide, tall);
          },
        });
    panes.push(truth, ...(guess ? [guess] : []));
    const note = h('p', {class: 'vsl-note', 'data-target': name});
    return {name, k, note, el: h('div', {class: 'vsl-target'}, truth.el, guess ? guess.el : '', note)};
  });
  const redraw = () => panes.forEach(p => p.redraw());
  const tell = () => {
    const count = hidden.reduce((a, b) => a + b, 0);
    const ms = model.get('milliseconds');
    const constants = model.get('constants');
    const facts = [`${count} of ${n} patches hidden (${percent(count / n)})`];
    if (hover >= 0) facts.push(`${where(hover, cols)}: ${hidden[hover] ? 'hidden' : 'visible'}`);
    if (model.get('live') && ms) facts.push(`${ms.toFixed(0)} ms`);
    ui.say(facts.join(' · '));
    for (const {k, note} of columns) {
      if (!says[k]) {
        note.textContent = 'no model';
        continue;
      }
      const own = costs.subarray(k * n, (k + 1) * n);
      const hurt = own.filter((_, i) => hidden[i]);
      const mean = hurt.length ? hurt.reduce((a, b) => a + b, 0) / hurt.length : 0;
      note.textContent =
        `cost of hidden patches ${mean.toFixed(3)}, the best constant's ${constants[k].toFixed(3)}` +
        (hover >= 0 ? `; this patch ${own[hover].toFixed(3)}` : '');
      note.dataset.cost = mean.toFixed(4);
      note.dataset.here = hover >= 0 ? own[hover].toFixed(4) : '';
    }
    masked.canvas.dataset.hidden = count;
    masked.canvas.dataset.mask = hidden.join('');
    ui.root.dataset.hover = hover;
  };
  const load = () => {
    if (!painting) hidden = Uint8Array.from(bytes(model, 'hidden'));
    const data = bytes(model, 'results');
    const [t, w] = model.get('size');
    const size = t * w * 3;
    if (data.length === 2 * names.length * size)
      shots = Array.from({length: 2 * names.length}, (_, i) =>
        i % 2 && !says[i >> 1] ? null : bitmap(data, t, w, i * size),
      );
    costs = floats(model, 'costs');
    redraw();
    tell();
  };
  const offHand = v => (model.get('kind') === hand ? {kind: 'block', ...v} : v);
  ui.add(
    toolbar(
      slider(ui, 'ratio', {
        label: 'hide',
        min: 0,
        max: 0.95,
        step: 0.05,
        format: percent,
        changes: ratio => offHand({ratio}),
      }),
      radio(ui, 'kind', {label: 'kind', options: plainOptions('block', 'random', 'grid', hand)}),
      number(ui, 'seed', {label: 'seed'}),
      radio(ui, 'everywhere', {
        label: 'prediction',
        options: [
          [false, 'in the holes'],
          [true, 'everywhere'],
        ],
        busy: false,
      }),
    ),
    thumbnails(ui, pictures),
    paneRow(
      h('div', {class: 'vsl-target'}, input.el, masked.el),
      columns.map(c => c.el),
    ),
  );
  ui.on('hidden results picture answered error', load);
  ui.on('everywhere', redraw);
  load();
  return () => ui.close();
}
export default { render };
