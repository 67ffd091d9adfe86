// FeatureExplorer: what an encoder finds alike, picture by picture and patch by patch.
function render({model, el}) {
  const ui = shell(model, el, 'Feature explorer');
  const [n, height, width] = model.get('shape');
  const [rows, cols] = model.get('grid');
  const patches = rows * cols;
  const pictures = gallery(model);
  const names = model.get('names');
  const labels = model.get('labels');
  const classes = model.get('classes');
  const points = floats(model, 'points');
  const near = new Int32Array(bytes(model, 'neighbours').slice().buffer);
  const close = floats(model, 'closeness');
  const k = near.length / n;
  const rgb = bytes(model, 'rgb');
  const colour = i => CLASS_COLOURS[(labels[i] ?? 0) % CLASS_COLOURS.length];
  let hover = -1;
  let thumbs = false;
  const chosen = () => (hover >= 0 ? hover : model.get('picture'));
  const nameOf = i => names[i] || `picture ${i + 1}`;

  // The set: one dot a picture. The nearest dot answers to the pointer;
  // arrow keys go to the next dot in that direction.
  const size = 640;
  const pad = 26;
  const map = h('canvas', {
    class: 'vsl-live vsl-scatter',
    width: size,
    height: size,
    tabindex: 0,
    role: 'application',
    'aria-label': 'map of the pictures: point at one, click to choose it, or move with the arrow keys',
  });
  const px = i => [pad + points[2 * i] * (size - 2 * pad), pad + (1 - points[2 * i + 1]) * (size - 2 * pad)];
  const drawMap = () => {
    const context = map.getContext('2d');
    const now = chosen();
    const mates = new Set(near.subarray(now * k, now * k + k));
    context.clearRect(0, 0, size, size);
    const order = [...Array(n).keys()].sort((a, b) => (a === now) - (b === now) || mates.has(a) - mates.has(b));
    for (const i of order) {
      const [x, y] = px(i);
      if (thumbs || i === now) {
        const s = i === now ? 60 : 34;
        context.fillStyle = colour(i);
        context.fillRect(x - s / 2 - 3, y - s / 2 - 3, s + 6, s + 6);
        context.imageSmoothingEnabled = true;
        context.drawImage(pictures[i], x - s / 2, y - s / 2, s, s);
      } else {
        context.fillStyle = colour(i);
        context.globalAlpha = mates.has(i) ? 1 : 0.75;
        disc(context, x, y, mates.has(i) ? 10 : 7);
        context.globalAlpha = 1;
      }
      if (mates.has(i) && i !== now) {
        context.lineWidth = 4;
        context.strokeStyle = '#e69f00';
        ring(context, x, y, thumbs ? 26 : 13);
      }
    }
  };
  const nearest = event => {
    const box = map.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * size;
    const y = ((event.clientY - box.top) / box.height) * size;
    let best = -1;
    let distance = 40 ** 2;
    for (let i = 0; i < n; i++) {
      const [a, b] = px(i);
      const d = (a - x) ** 2 + (b - y) ** 2;
      if (d < distance) {
        best = i;
        distance = d;
      }
    }
    return best;
  };
  const pick = i => {
    if (i < 0) return;
    hover = -1;
    ui.send({picture: i}, {busy: ui.can('gram')});
    look();
  };
  map.addEventListener('pointermove', event => {
    const i = nearest(event);
    if (i !== hover) {
      hover = i;
      look();
    }
  });
  map.addEventListener('pointerleave', () => {
    hover = -1;
    look();
  });
  map.addEventListener('click', event => pick(nearest(event)));
  map.addEventListener('keydown', event => {
    const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    const now = model.get('picture');
    const [x, y] = px(now);
    let best = -1;
    let cost = Infinity;
    for (let i = 0; i < n; i++) {
      const [a, b] = px(i);
      const ahead = (a - x) * way[0] + (b - y) * way[1];
      const aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
      if (i !== now && ahead > 0 && ahead >= aside && ahead + aside < cost) {
        best = i;
        cost = ahead + aside;
      }
    }
    pick(best);
  });

  const big = pane(ui, {
    caption: 'picture',
    rows,
    cols,
    ratio: height / width,
    draw(context, wide, tall) {
      context.drawImage(pictures[chosen()], 0, 0, wide, tall);
    },
  });
  const pca = pane(ui, {
    caption: 'its patches, PCA as RGB',
    rows,
    cols,
    ratio: height / width,
    cls: 'vsl-pca',
    draw(context, wide, tall) {
      context.drawImage(bitmap(rgb, rows, cols, chosen() * patches * 3), 0, 0, wide, tall);
    },
  });
  const row = h('div', {class: 'vsl-panes vsl-mates', style: '--pane: 84px'});
  const drawMates = () => {
    const now = chosen();
    row.replaceChildren(
      ...Array.from({length: k}, (_, j) => {
        const i = near[now * k + j];
        const same = labels.length && labels[i] === labels[now];
        const copy = copyOf(pictures[i]);
        if (labels.length) copy.style.cssText = `border: 3px solid ${same ? '#009e73' : 'transparent'}`;
        return h(
          'figure',
          {'data-picture': i},
          copy,
          h('figcaption', {title: nameOf(i)}, close[now * k + j].toFixed(2), ' ', nameOf(i)),
        );
      }),
    );
  };

  // Patches: one row of pictures; the patch under the pointer, or the cursor,
  // is compared with every patch of all of them.
  const cosine = v => v / 127.5 - 1;
  let shown = [];
  let gram = null;
  let patch = null;
  let boards = [];
  const strip = h('div', {class: 'vsl-panes'});
  const scale = legend(SIGNED);
  scale.set('-1', '1');
  const query = () => patch ?? model.get('patch');
  const buildBoards = () => {
    shown = model.get('shown');
    gram = bytes(model, 'gram');
    const total = shown.length * patches;
    const pin = (j, cell) => {
      patch = null;
      ui.send({patch: j * patches + cell}, {busy: false});
      drawBoards();
    };
    boards = shown.map((i, j) =>
      pane(ui, {
        caption: nameOf(i),
        rows,
        cols,
        ratio: height / width,
        cls: 'vsl-patches',
        label: `${nameOf(i)}: point at a patch, or move with the arrow keys, to see which patches are alike`,
        draw(context, wide, tall) {
          const q = query();
          const values = gram.subarray(q * total + j * patches, q * total + (j + 1) * patches);
          context.drawImage(pictures[i], 0, 0, wide, tall);
          context.globalAlpha = 0.72;
          context.drawImage(
            heat(values, rows, cols, SIGNED, v => v / 255),
            0,
            0,
            wide,
            tall,
          );
          context.globalAlpha = 1;
          if (Math.floor(q / patches) === j) outline(context, wide, tall, rows, cols, q % patches, '#e69f00');
        },
        on: {
          hover(cell) {
            patch = cell < 0 ? null : j * patches + cell;
            drawBoards();
          },
          press(cell) {
            pin(j, cell);
          },
          move(cell) {
            pin(j, cell);
          },
          key(cell) {
            pin(j, cell);
          },
        },
      }),
    );
    strip.replaceChildren(...boards.map(b => b.el));
    drawBoards();
  };
  const drawBoards = () => {
    if (!boards.length) return;
    boards.forEach(b => b.redraw());
    const q = query();
    const total = shown.length * patches;
    const j = Math.floor(q / patches);
    let best = -1;
    for (let i = 0; i < total; i++)
      if (Math.floor(i / patches) !== j && (best < 0 || gram[q * total + i] > gram[q * total + best])) best = i;
    ui.root.dataset.patch = q;
    ui.root.dataset.match = best;
    const place = i => `${where(i % patches, cols)} of ${nameOf(shown[Math.floor(i / patches)])}`;
    match.textContent = '';
    if (best < 0) return;
    const similarity = cosine(gram[q * total + best]).toFixed(2);
    match.textContent = `${place(q)} · most alike elsewhere: ${place(best)}, cosine ${similarity}`;
  };
  const match = h('p', {class: 'vsl-match', 'aria-live': 'polite'});

  const look = () => {
    drawMap();
    big.redraw();
    pca.redraw();
    drawMates();
    const now = chosen();
    const mates = near.subarray(now * k, now * k + k);
    const same = [...mates].filter(i => labels[i] === labels[now]).length;
    big.caption(nameOf(now));
    ui.root.dataset.picture = now;
    ui.say(
      `${nameOf(now)}` +
        (labels.length ? ` · ${same} of its ${k} nearest are of the same class` : ` · its ${k} nearest`),
    );
  };
  const dots = pushButton(
    {
      'aria-pressed': 'false',
      onclick: () => {
        thumbs = !thumbs;
        dots.setAttribute('aria-pressed', thumbs);
        drawMap();
      },
    },
    'pictures on the map',
  );
  const used = [...new Set(labels)].sort((a, b) => a - b);
  const key = h(
    'div',
    {class: 'vsl-legend'},
    used.map(c =>
      h('span', {}, h('i', {style: `background: ${CLASS_COLOURS[c % CLASS_COLOURS.length]}`}), classes[c] ?? c),
    ),
  );
  const [a, b] = model.get('explained');
  ui.add(
    paneRow(
      h(
        'figure',
        {style: 'width: 320px'},
        h('figcaption', {}, `two main axes, ${percent(a + b)} of the variance`),
        map,
        key,
        h('div', {style: 'margin-top: 6px'}, dots),
      ),
      h(
        'div',
        {style: 'flex: 1; min-width: 300px'},
        paneRow(big.el, pca.el),
        h('p', {class: 'vsl-note', style: 'margin: 8px 0 3px'}, 'nearest by cosine (green: same class)'),
        row,
      ),
    ),
    h(
      'p',
      {class: 'vsl-note', style: 'margin: 10px 0 3px'},
      'Patch similarity within and between pictures: cosine from -1 (blue) through 0 (white) to 1 (red). ' +
        'The chosen picture, then its nearest.',
    ),
    strip,
    h('div', {style: 'max-width: 168px'}, scale.el),
    match,
  );
  ui.on('picture', look);
  ui.on('gram', buildBoards);
  ui.on('patch', drawBoards);
  look();
  buildBoards();
  return () => ui.close();
}
export default { render };
