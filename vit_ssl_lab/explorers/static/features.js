// FeatureExplorer: what an encoder finds alike, picture by picture and patch by patch.
function render({model, el}) {
  const ui = shell(model, el, 'Feature explorer');
  const [n, height, width] = model.get('shape'), [rows, cols] = model.get('grid'), patches = rows * cols;
  const pictures = gallery(model), names = model.get('names'), labels = model.get('labels'), classes = model.get('classes');
  const points = floats(model, 'points'), near = new Int32Array(bytes(model, 'neighbours').slice().buffer), close = floats(model, 'closeness'), k = near.length / n;
  const rgb = bytes(model, 'rgb');
  const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#777777', '#8c564b', '#9467bd', '#bcbd22'];
  const colour = i => COLOURS[(labels[i] ?? 0) % COLOURS.length];
  let hover = -1, thumbs = false;
  const chosen = () => hover >= 0 ? hover : model.get('picture');
  const nameOf = i => names[i] || `picture ${i + 1}`;

  // The set: one dot a picture. The nearest dot answers to the pointer; arrow keys go to the next dot in that direction.
  const size = 640, pad = 26;
  const map = h('canvas', {class: 'vsl-live vsl-scatter', width: size, height: size, tabindex: 0, role: 'application',
    'aria-label': 'map of the pictures: point at one, click to choose it, or move with the arrow keys'});
  const px = i => [pad + points[2 * i] * (size - 2 * pad), pad + (1 - points[2 * i + 1]) * (size - 2 * pad)];
  const drawMap = () => {
    const g = map.getContext('2d'), now = chosen(), mates = new Set(near.subarray(now * k, now * k + k));
    g.clearRect(0, 0, size, size);
    const order = [...Array(n).keys()].sort((a, b) => (a === now) - (b === now) || mates.has(a) - mates.has(b));
    for (const i of order) {
      const [x, y] = px(i), r = i === now ? 13 : mates.has(i) ? 10 : 7;
      if (thumbs || i === now) {
        const s = i === now ? 60 : 34;
        g.fillStyle = colour(i); g.fillRect(x - s / 2 - 3, y - s / 2 - 3, s + 6, s + 6);
        g.imageSmoothingEnabled = true; g.drawImage(pictures[i], x - s / 2, y - s / 2, s, s);
      } else { g.beginPath(); g.arc(x, y, r, 0, 7); g.fillStyle = colour(i); g.globalAlpha = mates.has(i) ? 1 : .75; g.fill(); g.globalAlpha = 1; }
      if (mates.has(i) && i !== now) { g.beginPath(); g.arc(x, y, thumbs ? 26 : 13, 0, 7); g.lineWidth = 4; g.strokeStyle = '#e69f00'; g.stroke(); }
    }
  };
  const nearest = e => {
    const box = map.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * size, y = (e.clientY - box.top) / box.height * size;
    let best = -1, distance = 40 ** 2;
    for (let i = 0; i < n; i++) { const [a, b] = px(i), d = (a - x) ** 2 + (b - y) ** 2; if (d < distance) { best = i; distance = d; } }
    return best;
  };
  const pick = i => { if (i < 0) return; hover = -1; ui.send({picture: i}, {busy: ui.can('gram')}); look(); };
  map.addEventListener('pointermove', e => { const i = nearest(e); if (i !== hover) { hover = i; look(); } });
  map.addEventListener('pointerleave', () => { hover = -1; look(); });
  map.addEventListener('click', e => pick(nearest(e)));
  map.addEventListener('keydown', e => {
    const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[e.key];
    if (!way) return;
    e.preventDefault(); e.stopPropagation();
    const now = model.get('picture'), [x, y] = px(now);
    let best = -1, cost = Infinity;
    for (let i = 0; i < n; i++) {
      const [a, b] = px(i), ahead = (a - x) * way[0] + (b - y) * way[1], aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
      if (i !== now && ahead > 0 && ahead >= aside && ahead + aside < cost) { best = i; cost = ahead + aside; }
    }
    pick(best);
  });

  const big = pane(ui, {caption: 'picture', rows, cols, ratio: height / width, draw(g, w, t) { g.drawImage(pictures[chosen()], 0, 0, w, t); }});
  const pca = pane(ui, {caption: 'its patches, PCA as RGB', rows, cols, ratio: height / width, cls: 'vsl-pca',
    draw(g, w, t) { g.drawImage(bitmap(rgb, rows, cols, chosen() * patches * 3), 0, 0, w, t); }});
  const row = h('div', {class: 'vsl-panes vsl-mates', style: '--pane: 84px'});
  const drawMates = () => {
    const now = chosen();
    row.replaceChildren(...Array.from({length: k}, (_, j) => {
      const i = near[now * k + j], same = labels.length && labels[i] === labels[now];
      const copy = copyOf(pictures[i]);
      if (labels.length) copy.style.cssText = `border: 3px solid ${same ? '#009e73' : 'transparent'}`;
      return h('figure', {'data-picture': i}, copy, h('figcaption', {title: nameOf(i)}, close[now * k + j].toFixed(2), ' ', nameOf(i)));
    }));
  };

  // Patches: one row of pictures; the patch under the pointer, or the cursor, is compared with every patch of all of them.
  const cosine = v => v / 127.5 - 1;
  let shown = [], gram = null, patch = null, boards = [];
  const strip = h('div', {class: 'vsl-panes'}), scale = legend(SIGNED);
  scale.set('-1', '1');
  const query = () => patch ?? model.get('patch');
  const buildBoards = () => {
    shown = model.get('shown'); gram = bytes(model, 'gram');
    const total = shown.length * patches, pin = (j, cell) => { patch = null; ui.send({patch: j * patches + cell}, {busy: false}); drawBoards(); };
    boards = shown.map((i, j) => pane(ui, {caption: nameOf(i), rows, cols, ratio: height / width, cls: 'vsl-patches', label: `${nameOf(i)}: point at a patch, or move with the arrow keys, to see which patches are alike`,
      draw(g, w, t) {
        const q = query(), values = gram.subarray(q * total + j * patches, q * total + (j + 1) * patches);
        g.drawImage(pictures[i], 0, 0, w, t);
        g.globalAlpha = .72; g.drawImage(heat(values, rows, cols, SIGNED, v => v / 255), 0, 0, w, t); g.globalAlpha = 1;
        if (Math.floor(q / patches) === j) outline(g, w, t, rows, cols, q % patches, '#e69f00');
      },
      on: {hover(cell) { patch = cell < 0 ? null : j * patches + cell; drawBoards(); }, press(cell) { pin(j, cell); }, move(cell) { pin(j, cell); }, key(cell) { pin(j, cell); }}}));
    strip.replaceChildren(...boards.map(b => b.el));
    drawBoards();
  };
  const drawBoards = () => {
    if (!boards.length) return;
    boards.forEach(b => b.redraw());
    const q = query(), total = shown.length * patches, j = Math.floor(q / patches);
    let best = -1;
    for (let i = 0; i < total; i++) if (Math.floor(i / patches) !== j && (best < 0 || gram[q * total + i] > gram[q * total + best])) best = i;
    ui.root.dataset.patch = q; ui.root.dataset.match = best;
    match.textContent = best < 0 ? '' : `${where(q % patches, cols)} of ${nameOf(shown[j])} · most alike elsewhere: ${where(best % patches, cols)} of ${nameOf(shown[Math.floor(best / patches)])}, cosine ${cosine(gram[q * total + best]).toFixed(2)}`;
  };
  const match = h('p', {class: 'vsl-match', 'aria-live': 'polite'});

  const look = () => {
    drawMap(); big.redraw(); pca.redraw(); drawMates();
    const now = chosen(), mates = near.subarray(now * k, now * k + k), same = [...mates].filter(i => labels[i] === labels[now]).length;
    big.caption(nameOf(now));
    ui.root.dataset.picture = now;
    ui.say(`${nameOf(now)}` + (labels.length ? ` · ${same} of its ${k} nearest are of the same class` : ` · its ${k} nearest`));
  };
  const dots = h('button', {type: 'button', 'aria-pressed': 'false', onclick: () => { thumbs = !thumbs; dots.setAttribute('aria-pressed', thumbs); drawMap(); }}, 'pictures on the map');
  const used = [...new Set(labels)].sort((a, b) => a - b);
  const key = h('div', {class: 'vsl-legend'}, used.map(c => h('span', {}, h('i', {style: `background: ${COLOURS[c % COLOURS.length]}`}), classes[c] ?? c)));
  const [a, b] = model.get('explained');
  ui.body.append(
    h('div', {class: 'vsl-panes'},
      h('figure', {style: 'width: 320px'}, h('figcaption', {}, `two main axes, ${percent(a + b)} of the variance`), map, key, h('div', {style: 'margin-top: 6px'}, dots)),
      h('div', {style: 'flex: 1; min-width: 300px'}, h('div', {class: 'vsl-panes'}, big.el, pca.el), h('p', {class: 'vsl-note', style: 'margin: 8px 0 3px'}, 'nearest by cosine (green: same class)'), row)),
    h('p', {class: 'vsl-note', style: 'margin: 10px 0 3px'}, 'Patch similarity within and between pictures: cosine from -1 (blue) through 0 (white) to 1 (red). The chosen picture, then its nearest.'),
    strip, h('div', {style: 'max-width: 168px'}, scale.el), match);
  ui.on('picture', look);
  ui.on('gram', buildBoards);
  ui.on('patch', drawBoards);
  look(); buildBoards();
  return () => ui.close();
}
export default { render };
