// SiameseExplorer: two crops of one picture that can be moved, what the network makes of them,
// and which other pictures it takes for them.
function render({model, el}) {
  const ui = shell(model, el, 'Siamese explorer');
  const [, height, width] = model.get('shape');
  const pictures = gallery(model);
  const COLOURS = ['#e69f00', '#56b4e9'];
  const SHOWN = 11;
  const moves = model.get('movable') && ui.can('boxes');
  const picture = () => pictures[model.get('picture')];
  let boxes = [];
  let shots = [];
  let dragging = -1;

  // The source, and on it one element a crop: drag it, or its corners;
  // arrow keys move it, with shift they change its size.
  const source = pane(ui, {
    caption: moves ? 'source: drag the crops or their corners' : 'source and its two crops',
    rows: 1,
    cols: 1,
    ratio: height / width,
    label: 'source picture',
    draw(context, wide, tall) {
      context.imageSmoothingEnabled = true;
      context.drawImage(picture(), 0, 0, wide, tall);
    },
  });
  const frame = h('div', {class: 'vsl-source'});
  source.canvas.replaceWith(frame);
  frame.append(source.canvas);
  source.el.classList.add('vsl-wide');
  const times = v => `× ${v.toFixed(1)}`;
  const round = ([top, left, cropHeight, cropWidth]) => {
    const [a, b] = [
      Math.min(height, Math.max(2, Math.round(cropHeight))),
      Math.min(width, Math.max(2, Math.round(cropWidth))),
    ];
    return [
      Math.min(height - a, Math.max(0, Math.round(top))),
      Math.min(width - b, Math.max(0, Math.round(left))),
      a,
      b,
    ];
  };
  const describe = ([top, left, cropHeight, cropWidth]) =>
    `rows ${Math.round(top)} to ${Math.round(top + cropHeight)}, ` +
    `columns ${Math.round(left)} to ${Math.round(left + cropWidth)}`;
  const change = (i, box, delay) => {
    boxes[i] = round(box);
    placeCrops();
    views[i].redraw();
    if (delay !== undefined) ui.send({boxes: boxes.map(b => [...b]), hand: true}, {delay});
    ui.say(`crop ${i + 1}: ${describe(boxes[i])}`);
  };
  const crops = [0, 1].map(i => {
    const crop = h(
      'div',
      {
        class: 'vsl-crop',
        'data-crop': i,
        style: `--crop: ${COLOURS[i]}`,
        role: 'application',
        tabindex: moves ? 0 : null,
      },
      h('b', {'aria-hidden': 'true'}, `x${i + 1}`),
      moves ? ['tl', 'tr', 'bl', 'br'].map(corner => h('i', {'data-corner': corner})) : [],
    );
    crop.dataset.lmSuppressShortcuts = 'true';
    if (!moves) return crop;
    let start = null;
    crop.addEventListener('pointerdown', event => {
      if (event.button) return;
      crop.setPointerCapture(event.pointerId);
      dragging = i;
      start = {
        x: event.clientX,
        y: event.clientY,
        box: [...boxes[i]],
        corner: event.target.dataset.corner,
        scale: height / frame.clientHeight,
      };
    });
    crop.addEventListener('pointermove', event => {
      if (!start) return;
      const dx = (event.clientX - start.x) * start.scale;
      const dy = (event.clientY - start.y) * start.scale;
      const [top, left, cropHeight, cropWidth] = start.box;
      const corner = start.corner;
      if (!corner) return change(i, [top + dy, left + dx, cropHeight, cropWidth]);

      // A corner moves, the opposite one stays.
      const bottom = top + cropHeight;
      const right = left + cropWidth;
      const fit = (v, low, high) => Math.min(high, Math.max(low, v));
      const y1 = corner[0] === 't' ? fit(top + dy, 0, bottom - 2) : top;
      const y2 = corner[0] === 'b' ? fit(bottom + dy, top + 2, height) : bottom;
      const x1 = corner[1] === 'l' ? fit(left + dx, 0, right - 2) : left;
      const x2 = corner[1] === 'r' ? fit(right + dx, left + 2, width) : right;
      change(i, [y1, x1, y2 - y1, x2 - x1]);
    });
    const up = () => {
      if (!start) return;
      const moved = boxes[i].some((v, k) => v !== start.box[k]);
      start = null;
      dragging = -1;
      if (moved) change(i, boxes[i], 0);
      else views[i].redraw();
    };
    crop.addEventListener('pointerup', up);
    crop.addEventListener('pointercancel', up);
    crop.addEventListener('keydown', event => {
      const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const [top, left, cropHeight, cropWidth] = boxes[i];
      stale[i] = true;
      change(
        i,
        event.shiftKey
          ? [top, left, Math.min(cropHeight + step[0], height - top), Math.min(cropWidth + step[1], width - left)]
          : [top + step[0], left + step[1], cropHeight, cropWidth],
        250,
      );
    });
    return crop;
  });
  frame.append(...crops);
  const stale = [false, false]; // the keyboard moved it and the kernel hasn't answered yet
  const placeCrops = () =>
    crops.forEach((crop, i) => {
      crop.hidden = !boxes[i];
      if (!boxes[i]) return;
      const [top, left, cropHeight, cropWidth] = boxes[i];
      Object.assign(crop.style, {
        top: `${(100 * top) / height}%`,
        left: `${(100 * left) / width}%`,
        height: `${(100 * cropHeight) / height}%`,
        width: `${(100 * cropWidth) / width}%`,
        zIndex: 2 + (cropHeight * cropWidth < boxes[1 - i][2] * boxes[1 - i][3]),
      }); // the smaller one lies above
      crop.dataset.box = boxes[i].map(Math.round).join(' ');
      crop.setAttribute(
        'aria-label',
        `crop ${i + 1}: ${describe(boxes[i])}` +
          (moves ? '; arrow keys move it, shift and arrow keys change its size' : ''),
      );
    });

  // The two views. While a crop moves, the browser shows the bare crop; the network's view comes with the answer.
  const size = model.get('size');
  const views = [0, 1].map(i =>
    pane(ui, {
      caption: `x${i + 1}`,
      rows: 1,
      cols: 1,
      ratio: size[0] / size[1],
      label: `view ${i + 1} as the network sees it`,
      cls: 'vsl-view',
      draw(context, wide, tall) {
        context.imageSmoothingEnabled = true;
        if ((dragging === i || stale[i]) && boxes[i]) {
          const [top, left, cropHeight, cropWidth] = boxes[i];
          context.drawImage(picture(), left, top, cropWidth, cropHeight, 0, 0, wide, tall);
        } else if (shots[i]) context.drawImage(shots[i], 0, 0, wide, tall);
        context.lineWidth = 10;
        context.strokeStyle = COLOURS[i];
        context.strokeRect(0, 0, wide, tall);
      },
    }),
  );
  const words = [0, 1].map(i => {
    const p = h('p', {class: 'vsl-note vsl-words'});
    views[i].el.append(p);
    return p;
  });

  // Cosines of what the two views became.
  const angles = h('div', {class: 'vsl-angles', role: 'list', 'aria-label': 'cosines'});
  const drawAngles = () =>
    angles.replaceChildren(
      h('p', {class: 'vsl-note', style: 'grid-column: 1 / -1'}, 'cosine, -1 to 1'),
      ...model.get('cosines').flatMap(([name, value]) => {
        const left = Math.min(50, 50 + 50 * value);
        const label = h(
          'span',
          {role: 'listitem', 'aria-label': `${name}: ${value.toFixed(2)}`, 'data-cosine': name},
          name,
        );
        const length = 50 * Math.abs(value);
        const colour = value < 0 ? '#4393c3' : '#d6604d';
        return [
          label,
          h(
            'div',
            {class: 'vsl-track', 'aria-hidden': 'true'},
            h('i', {style: `left: ${left}%; width: ${length}%; background: ${colour}`}),
          ),
          h('span', {class: 'vsl-number'}, value.toFixed(2)),
        ];
      }),
    );

  // The vectors as strips, one column a dimension.
  let strip = null;
  let order = [];
  let values = [];
  let labels = [];
  let dims = 0;
  let rows = 0;
  const strips = h('div', {class: 'vsl-strips'});
  const column = h('p', {class: 'vsl-note'});
  const scale = legend(SIGNED);
  scale.set('-3 std', '3 std');
  const read = cell => {
    const d = cell < 0 ? -1 : order[cell % dims];
    const width = model.get('width');
    ui.root.dataset.dimension = d;
    const numbers = labels.map((name, r) => `${name} ${values[r * dims + d]?.toFixed(2)}`);
    const shown = dims < width ? `the first ${dims} of ${width} dimensions` : `${dims} dimensions`;
    column.textContent =
      d < 0
        ? `${shown}; each vector has length 1, ` + 'so that a value is 1 std where all dimensions do the same work'
        : `dimension ${d + 1}: ${numbers.join(', ')}`;
  };
  const buildStrips = () => {
    const was = `${labels} ${dims}`;
    labels = model.get('vector_names');
    values = floats(model, 'vectors');
    rows = labels.length;
    dims = values.length / rows;
    order = [...Array(dims).keys()];
    if (model.get('order') === 'z1') order.sort((a, b) => values[a] - values[b]);
    if (`${labels} ${dims}` !== was) {
      strip = pane(ui, {
        caption: '',
        rows,
        cols: dims,
        ratio: 0.1,
        label: `the vectors ${labels.join(', ')}: point at a dimension, or move with the arrow keys, to read it`,
        cls: 'vsl-vectors',
        draw(context, wide, tall) {
          const sorted = Float32Array.from(
            {length: rows * dims},
            (_, i) => values[Math.floor(i / dims) * dims + order[i % dims]],
          );
          for (let r = 0; r < rows; r++)
            context.drawImage(
              heat(sorted.subarray(r * dims, (r + 1) * dims), 1, dims, SIGNED, v => (v + 3) / 6),
              0,
              (r * tall) / rows + 1,
              wide,
              tall / rows - 2,
            );
        },
        on: {
          hover: read,
          press: read,
          move: read,
          focus() {
            read(strip.cursor());
          },
        },
      });
      strip.canvas.width = dims * Math.max(1, Math.round(900 / dims));
      strip.canvas.height = 26 * rows;
      strip.canvas.style.height = `${26 * rows}px`;
      strips.replaceChildren(
        h(
          'div',
          {class: 'vsl-rows', 'aria-hidden': 'true'},
          labels.map(name => h('span', {}, name)),
        ),
        strip.canvas,
      );
    }
    strip.redraw();
    read(strip.canvas.dataset.focus === 'true' ? strip.cursor() : -1);
  };

  // The InfoNCE row. The cosines came once; the softmax is done here, at any temperature.
  const row = h('div', {
    class: 'vsl-row',
    role: 'list',
    'aria-label': 'probabilities: the positive, then the negatives, the most alike first',
  });
  let cells = [];
  let cosines = [];
  let ranked = [];
  const buildRow = () => {
    const [th, tw] = model.get('thumb');
    const data = bytes(model, 'thumbs');
    const keys = model.get('key_names');
    const me = model.get('picture');
    cosines = [...floats(model, 'logits')];
    ranked = [...cosines.keys()].filter(i => i !== me).sort((a, b) => cosines[b] - cosines[a]);
    const shown = [me, ...ranked.slice(0, SHOWN)];
    cells = shown.map((i, place) => {
      const bar = h('i', {'aria-hidden': 'true'});
      const text = h('span', {class: 'vsl-number'});
      const name = place ? keys[i] || `picture ${i + 1}` : `${model.get('key_name')}, the positive`;
      const cell = h(
        'figure',
        {
          role: 'listitem',
          'data-key': i,
          class: place ? '' : 'vsl-positive',
          title: `${name}: cosine ${cosines[i].toFixed(3)}`,
        },
        text,
        h('div', {class: 'vsl-column'}, bar),
        place ? bitmap(data, th, tw, i * th * tw * 3) : copyOf(shots[1]),
        h('figcaption', {}, place ? cosines[i].toFixed(2) : `+ ${cosines[i].toFixed(2)}`),
      );
      return {i, cell, bar, text, name};
    });
    const rest = ranked.length - SHOWN;
    const other = rest > 0 ? h('p', {class: 'vsl-note vsl-rest'}) : null;
    row.replaceChildren(...cells.map(c => c.cell), ...(other ? [other] : []));
    row.dataset.order = ranked.join(' ');
    soften();
  };
  const soften = () => {
    if (!cells.length) return;
    const me = model.get('picture');
    const t = model.get('temperature');
    const top = Math.max(...cosines);
    const weights = cosines.map(c => Math.exp((c - top) / t));
    const sum = weights.reduce((a, b) => a + b, 0);
    const p = weights.map(w => w / sum);
    const high = Math.max(...cells.map(c => p[c.i]));
    const n = p.length;
    for (const {i, cell, bar, text, name} of cells) {
      bar.style.height = `${(100 * p[i]) / high}%`;
      text.textContent = percent(p[i]);
      cell.setAttribute('aria-label', `${name}: probability ${percent(p[i])}, cosine ${cosines[i].toFixed(2)}`);
      cell.dataset.probability = p[i].toFixed(5);
    }
    const negatives = 1 - p[me];
    const entropy = -ranked.reduce((s, i) => s + (p[i] > 0 ? (p[i] / negatives) * Math.log(p[i] / negatives) : 0), 0);
    const rank = 1 + ranked.filter(i => cosines[i] > cosines[me]).length;
    const shown = new Set(cells.map(c => c.i));
    const others = row.querySelector('.vsl-rest');
    const rest = ranked.filter(i => !shown.has(i)).reduce((s, i) => s + p[i], 0);
    if (others) others.textContent = `${ranked.length - SHOWN} others: ${percent(rest).replace(' ', '\u00a0')}`;
    // -log p without the rounding of p
    const loss = Math.log(sum) - (cosines[me] - top) / t;
    Object.assign(ui.root.dataset, {
      temperature: t.toFixed(3),
      positive: p[me].toFixed(5),
      rank,
      loss: loss.toFixed(4),
    });
    summary.textContent = 'There are no other pictures, so there are no negatives.';
    if (n < 2) return;
    summary.textContent =
      `${model.get('query_name')} finds ${model.get('key_name')} as number ${rank} of ${n}: ` +
      `probability ${percent(p[me])}, loss ${loss.toFixed(2)} (log ${n} = ${Math.log(n).toFixed(2)} is chance); ` +
      `the negatives' weight lies on ${Math.exp(entropy).toFixed(1)} of ${n - 1}`;
  };
  const summary = h('p', {class: 'vsl-summary', 'aria-live': 'polite'});
  const trained = model.get('trained_temperature');
  const thermometer = h('input', {
    type: 'range',
    min: -2,
    max: 0.3,
    step: 0.01,
    'data-trait': 'temperature',
    'aria-label': 'temperature',
    disabled: !ui.can('temperature'),
  });
  const degrees = h('output');
  const readTemperature = () => {
    const t = model.get('temperature');
    if (Math.abs(10 ** thermometer.value - t) > 0.006 * t) thermometer.value = Math.log10(t);
    degrees.textContent = t.toFixed(t < 0.1 ? 3 : 2);
    thermometer.setAttribute('aria-valuetext', degrees.textContent);
    soften();
  };
  const heatTo = t => {
    ui.send({temperature: t}, {busy: false});
    readTemperature();
  };
  thermometer.addEventListener('input', () => heatTo(10 ** thermometer.value));
  ui.on('temperature', readTemperature);

  const load = () => {
    if (dragging < 0) {
      boxes = model.get('boxes').map(b => [...b]);
      stale.fill(false);
    }
    const data = bytes(model, 'views');
    const length = size[0] * size[1] * 3;
    shots = [0, 1].map(i => bitmap(data, size[0], size[1], i * length));
    model.get('words').forEach((text, i) => {
      words[i].textContent = text;
    });
    source.redraw();
    placeCrops();
    views.forEach(v => v.redraw());
    drawAngles();
    buildStrips();
    buildRow();
    const ms = model.get('milliseconds');
    const name = model.get('names')[model.get('picture')];
    ui.say(
      [
        name || `picture ${model.get('picture') + 1}`,
        `cosine of ${model
          .get('cosines')
          .map(([n, v]) => `${n}: ${v.toFixed(2)}`)
          .join(', ')}`,
        ...(model.get('live') && ms ? [`${ms.toFixed(0)} ms`] : []),
      ].join(' · '),
    );
  };

  ui.add(
    toolbar(
      number(ui, 'seed', {label: 'seed'}),
      model.get('movable')
        ? slider(ui, 'strength', {label: 'augmentation', min: 0, max: 2, step: 0.1, format: times})
        : null,
      moves
        ? pushButton(
            {
              class: 'vsl-dice',
              onclick: () => ui.send({hand: false}),
              title: 'put both crops back where they were drawn',
            },
            'crops as drawn',
          )
        : null,
    ),
    thumbnails(ui, pictures),
    paneRow(
      source.el,
      views.map(v => v.el),
      angles,
    ),
    h(
      'div',
      {class: 'vsl-bar vsl-gap'},
      h('b', {}, 'Vectors'),
      radio(ui, 'order', {
        label: 'dimensions ordered by',
        options: [
          ['z1', 'z1'],
          ['index', 'number'],
        ],
        busy: false,
      }),
    ),
    strips,
    h('div', {class: 'vsl-under'}, column, h('div', {style: 'width: 120px'}, scale.el)),
    h(
      'div',
      {class: 'vsl-bar vsl-gap'},
      h('b', {}, 'Among other pictures'),
      h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, 'temperature'), thermometer, degrees),
      pushButton({onclick: () => heatTo(trained)}, `${model.get('trained_word')} (${trained.toFixed(2)})`),
    ),
    row,
    summary,
  );
  ui.on('answered views', load);
  ui.on('picture', () => {
    source.redraw();
  });
  ui.on('order', buildStrips);
  readTemperature();
  load();
  return () => ui.close();
}
export default { render };
