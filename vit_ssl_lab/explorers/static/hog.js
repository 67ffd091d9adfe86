// HogExplorer: cells over a picture, their histograms as strokes, and the histogram of one cell.
// The kernel sends votes; normalisation, contrast and brightness are the browser's.
function render({model, el}) {
  const ui = shell(model, el, 'HOG explorer');
  const [, height, width] = model.get('shape');
  const pictures = gallery(model);
  const COLOURS = ['#d55e00', '#009e73', '#0072b2'];
  let rows = 1;
  let cols = 1;
  let bins = 9;
  let channels = 3;
  let votes = [];
  let hover = -1;
  let top = 1;
  let chosen = 0;
  let input = null;
  let strokes = null;

  const at = (c, k, cell) => votes[(c * bins + k) * rows * cols + cell];
  // The numbers of one cell and channel after the chosen normalisation.
  // Contrast multiplies every vote; brightness moves none.
  const histogram = (c, cell) => {
    const raw = Array.from({length: bins}, (_, k) => at(c, k, cell) * model.get('contrast'));
    const norm = model.get('norm');
    let size = 1;
    if (norm === 'l2') size = Math.hypot(...raw);
    if (norm === 'l1') size = raw.reduce((a, b) => a + b, 0);
    return raw.map(v => v / Math.max(size, 1e-12));
  };
  const all = cell => Array.from({length: channels}, (_, c) => histogram(c, cell));
  const mean = cell => {
    const histograms = all(cell);
    return histograms[0].map((_, k) => histograms.reduce((sum, v) => sum + v[k], 0) / channels);
  };
  const cellAt = () => (hover >= 0 ? hover : chosen);

  const image = (context, wide, tall) => {
    const a = model.get('contrast');
    const b = model.get('brightness');
    const source = pictures[model.get('picture')].getContext('2d').getImageData(0, 0, width, height);
    // The array clamps by itself: only what is shown; the votes are those of the unclamped picture.
    for (let i = 0; i < source.data.length; i++) if (i % 4 < 3) source.data[i] = a * source.data[i] + 255 * b;
    const canvas = h('canvas', {width, height});
    canvas.getContext('2d').putImageData(source, 0, 0);
    context.drawImage(canvas, 0, 0, wide, tall);
  };
  const grid = (context, wide, tall) => {
    context.strokeStyle = '#fff8';
    context.lineWidth = 1;
    for (let r = 1; r < rows; r++) {
      context.beginPath();
      context.moveTo(0, Math.round((r * tall) / rows) + 0.5);
      context.lineTo(wide, Math.round((r * tall) / rows) + 0.5);
      context.stroke();
    }
    for (let c = 1; c < cols; c++) {
      context.beginPath();
      context.moveTo(Math.round((c * wide) / cols) + 0.5, 0);
      context.lineTo(Math.round((c * wide) / cols) + 0.5, tall);
      context.stroke();
    }
    outline(context, wide, tall, rows, cols, cellAt(), '#e69f00');
  };
  // A stroke lies along the edge: at a right angle to the gradient whose angle is atan2(gx, gy).
  const paint = (context, wide, tall) => {
    context.fillStyle = '#000';
    context.fillRect(0, 0, wide, tall);
    const radius = 0.46 * Math.min(wide / cols, tall / rows);
    context.lineWidth = Math.max(1.2, radius / 6);
    context.lineCap = 'round';
    for (let cell = 0; cell < rows * cols; cell++) {
      const x = (((cell % cols) + 0.5) * wide) / cols;
      const y = ((Math.floor(cell / cols) + 0.5) * tall) / rows;
      mean(cell).forEach((v, k) => {
        const share = Math.min(1, v / top);
        if (share < 0.02) return;
        const angle = ((k + 0.5) * Math.PI) / bins;
        const dx = radius * Math.cos(angle);
        const dy = -radius * Math.sin(angle);
        context.strokeStyle = `rgba(255,255,255,${share})`;
        context.beginPath();
        context.moveTo(x - dx, y - dy);
        context.lineTo(x + dx, y + dy);
        context.stroke();
      });
    }
  };

  // One cell's histogram, a group of bars a bin and one bar a channel.
  const chart = h('div', {class: 'vsl-hog', role: 'list', 'aria-label': 'histogram of the chosen cell'});
  const fill = () => {
    const cell = cellAt();
    const numbers = all(cell);
    const scale = model.get('norm') === 'none' ? Math.max(model.get('ceiling'), 1e-12) : 1;
    chart.replaceChildren(
      ...Array.from({length: bins}, (_, k) => {
        const low = Math.round((k * 180) / bins);
        const values = numbers.map(n => n[k]);
        return h(
          'div',
          {
            role: 'listitem',
            'data-bin': k,
            'data-values': values.map(v => v.toFixed(4)).join(' '),
            'aria-label': `${low} degrees: ${values.map(v => v.toFixed(2)).join(', ')}`,
          },
          h(
            'div',
            {class: 'vsl-column'},
            values.map((v, c) =>
              h('i', {
                style: [
                  `height: ${100 * Math.min(1, v / scale)}%`,
                  `left: ${(100 * c) / channels}%`,
                  `width: ${96 / channels}%`,
                  `background: ${channels === 1 ? '#777' : COLOURS[c]}`,
                ].join('; '),
              }),
            ),
          ),
          h('span', {class: 'vsl-number'}, `${low}°`),
        );
      }),
    );
    const m = mean(cell);
    const best = m.indexOf(Math.max(...m));
    const flat = Math.max(...m) < 1e-9;
    const sum = numbers[0].reduce((s, v) => s + v * v, 0);
    Object.assign(ui.root.dataset, {
      cell,
      bin: flat ? -1 : best,
      length: Math.sqrt(sum).toFixed(4),
      norm: model.get('norm'),
    });
    const low = Math.round((best * 180) / bins);
    const high = Math.round(((best + 1) * 180) / bins);
    const length = Math.sqrt(sum).toFixed(2);
    const facts = flat
      ? 'flat, no votes'
      : `most votes at ${low} to ${high}°, length of a channel's histogram ${length}`;
    ui.say(`${where(cell, cols)}: ${facts} · ${rows} x ${cols} cells`);
  };
  const panes = h('div', {class: 'vsl-panes', style: '--pane: 264px'});
  const look = () => {
    input.redraw();
    strokes.redraw();
    fill();
  };
  const build = () => {
    const arrived = floats(model, 'votes');
    const dims = model.get('dims');
    if (arrived.length !== dims.reduce((a, b) => a * b, 1)) return; // traits arrive one after the other
    const same = input && String(dims) === String([channels, bins, rows, cols]);
    votes = arrived;
    if (same) return rescale(); // the panes stay, and with them the focus
    [channels, bins, rows, cols] = dims;
    hover = -1;
    chosen = Math.min(chosen, rows * cols - 1);
    const on = {
      hover(cell) {
        hover = cell;
        look();
      },
      press(cell) {
        chosen = cell;
        look();
      },
      move(cell) {
        chosen = cell;
        hover = -1;
        look();
      },
      focus() {
        input.cursor(chosen);
        strokes.cursor(chosen);
      },
    };
    const common = {
      rows,
      cols,
      ratio: height / width,
      on,
      label: 'cells: point at one, or move with the arrow keys, to read its histogram',
    };
    input = pane(ui, {
      ...common,
      caption: 'picture and cells',
      cls: 'vsl-cells',
      draw(context, wide, tall) {
        image(context, wide, tall);
        grid(context, wide, tall);
      },
    });
    strokes = pane(ui, {
      ...common,
      caption: 'histograms, strokes along the edges',
      cls: 'vsl-strokes',
      draw(context, wide, tall) {
        paint(context, wide, tall);
        outline(context, wide, tall, rows, cols, cellAt(), '#e69f00');
      },
    });
    panes.replaceChildren(
      input.el,
      strokes.el,
      h(
        'figure',
        {},
        h(
          'figcaption',
          {},
          channels === 1 ? 'votes of the outlined cell, by angle' : 'votes of the outlined cell, by angle and colour',
        ),
        chart,
      ),
    );
    rescale();
  };
  // What is drawn brightest stays the same while the contrast moves, so that votes fade without normalisation.
  const rescale = () => {
    const norm = model.get('norm');
    top = norm === 'l1' ? 0.5 : 0.8;
    if (norm === 'none') top = model.get('ceiling');
    look();
  };
  const range = (name, label, low, high, format) => {
    const slide = h('input', {
      type: 'range',
      min: low,
      max: high,
      step: 0.05,
      'data-trait': name,
      'aria-label': label,
    });
    const out = h('output');
    const read = () => {
      slide.value = model.get(name);
      out.textContent = format(model.get(name));
      slide.setAttribute('aria-valuetext', out.textContent);
    };
    slide.addEventListener('input', () => {
      ui.send({[name]: +slide.value}, {busy: false});
      read();
      look();
    });
    ui.on(name, () => {
      read();
      look();
    });
    read();
    return h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, label), slide, out);
  };
  ui.add(
    toolbar(
      radio(ui, 'norm', {
        label: 'normalise each cell',
        options: [
          ['l2', 'L2'],
          ['l1', 'L1'],
          ['none', 'not'],
        ],
        busy: false,
      }),
      model.get('sizes').length > 1
        ? radio(ui, 'cell', {label: 'cell', options: model.get('sizes').map(s => [s, `${s} px`])})
        : null,
      radio(ui, 'bins', {label: 'bins', options: [6, 9, 12].map(b => [b, String(b)])}),
    ),
    toolbar(
      range('contrast', 'contrast', 0.1, 2, v => `× ${v.toFixed(2)}`),
      range('brightness', 'brightness', -0.5, 0.5, v => v.toFixed(2)),
    ),
    thumbnails(ui, pictures),
    panes,
  );
  ui.on('votes dims ceiling', build);
  ui.on('picture', () => input.redraw());
  ui.on('norm', rescale);
  build();
  return () => ui.close();
}
export default { render };
