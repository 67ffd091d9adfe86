// PositionPuzzle: the patches of a picture, shuffled, and put back where a network believes they belong.
// The network answers in the kernel; pointing and putting back are done here.
function render({model, el}) {
  const ui = shell(model, el, 'Position puzzle');
  const [rows, cols] = model.get('grid');
  const n = rows * cols;
  const [, height, width] = model.get('shape');
  const pictures = gallery(model);
  const ph = height / rows;
  const pw = width / cols;
  let order = [];
  let visible = new Set();
  let p = [];
  let confusion = [];
  let hover = null;
  let shown = null;
  let places = [];
  let board = [];

  // A slot of the shuffled picture holds the patch that comes from place order[slot].
  const tile = (context, place, x, y, w, t) =>
    context.drawImage(
      pictures[model.get('picture')],
      (place % cols) * pw,
      Math.floor(place / cols) * ph,
      pw,
      ph,
      x,
      y,
      w,
      t,
    );
  const at = (cell, w, t) => [((cell % cols) * w) / cols, (Math.floor(cell / cols) * t) / rows, w / cols, t / rows];
  const row = slot => p.subarray(slot * n, (slot + 1) * n);
  const patch = () => hover ?? model.get('patch');
  const frame = (context, wide, tall, cell, colour) => {
    const [x, y, a, b] = at(cell, wide, tall);
    context.lineWidth = 4;
    context.strokeStyle = colour;
    context.strokeRect(x + 2, y + 2, a - 4, b - 4);
  };

  // Which patch lies at which place: all of them once, or each where it is most likely,
  // the surer ones on top and places that none wants empty.
  const putBack = () => {
    places = model.get('assign') === 'each once' ? model.get('placed') : model.get('likely');
    board = Array(n).fill(-1);
    for (const slot of [...places.keys()].sort((a, b) => row(a)[places[a]] - row(b)[places[b]]))
      board[places[slot]] = slot;
  };
  const pin = slot => {
    hover = null;
    if (slot < 0) return;
    ui.send({patch: slot}, {busy: false});
    look();
  };
  const over = slot => {
    hover = slot < 0 ? null : slot;
    look();
  };
  const common = {rows, cols, ratio: height / width};
  const shuffled = pane(ui, {
    ...common,
    caption: 'shuffled: bright ones may be looked at',
    label: 'shuffled patches: point at one, or move with the arrow keys',
    cls: 'vsl-shuffled',
    on: {
      hover: over,
      press: pin,
      move: pin,
      key: pin,
      focus() {
        shuffled.cursor(model.get('patch'));
      },
    },
    draw(context, wide, tall) {
      for (let slot = 0; slot < n; slot++) {
        const [x, y, a, b] = at(slot, wide, tall);
        tile(context, order[slot], x + 1, y + 1, a - 2, b - 2);
        if (!visible.has(slot)) {
          context.fillStyle = 'rgba(128,128,128,.55)';
          context.fillRect(x, y, a, b);
        }
      }
      outline(context, wide, tall, rows, cols, patch(), '#56b4e9');
    },
  });
  const back = pane(ui, {
    ...common,
    caption: 'put back: wrong ones are outlined',
    label: 'patches put back: point at one, or move with the arrow keys',
    cls: 'vsl-back',
    on: {
      hover(cell) {
        over(cell < 0 ? -1 : board[cell]);
      },
      press(cell) {
        pin(board[cell]);
      },
      move(cell) {
        pin(board[cell]);
      },
      key(cell) {
        pin(board[cell]);
      },
      focus() {
        back.cursor(places[model.get('patch')]);
      },
    },
    draw(context, wide, tall) {
      board.forEach((slot, place) => {
        const [x, y, a, b] = at(place, wide, tall);
        if (slot < 0) return;
        tile(context, order[slot], x, y, a, b);
        if (order[slot] !== place) frame(context, wide, tall, place, '#d55e00');
      });
      outline(context, wide, tall, rows, cols, places[patch()], '#56b4e9');
    },
  });
  const map = pane(ui, {
    ...common,
    caption: '',
    label: 'where the patch might come from',
    cls: 'vsl-places',
    draw(context, wide, tall) {
      const top = Math.max(...shown, 1e-9);
      context.drawImage(
        heat(shown, rows, cols, VIRIDIS, v => v / top),
        0,
        0,
        wide,
        tall,
      );
      outline(context, wide, tall, rows, cols, order[patch()], '#e69f00');
    },
  });
  const scale = legend(VIRIDIS);
  map.el.append(scale.el);
  const truth = pane(ui, {
    ...common,
    caption: 'the picture',
    label: 'the picture as it was',
    draw(context, wide, tall) {
      context.drawImage(pictures[model.get('picture')], 0, 0, wide, tall);
      outline(context, wide, tall, rows, cols, order[patch()], '#e69f00');
    },
  });

  const look = () => {
    const slot = patch();
    const mine = order[slot];
    const one = model.get('show') === 'this patch';
    const belief = row(slot);
    shown = one ? belief : confusion.subarray(mine * n, (mine + 1) * n);
    map.caption(one ? 'where this patch might come from' : `patches from ${where(mine, cols)}, all pictures`);
    scale.set('0', percent(Math.max(...shown)));
    [shuffled, back, map, truth].forEach(x => x.redraw());
    let best = 0;
    for (let i = 1; i < n; i++) if (belief[i] > belief[best]) best = i;
    const right = places.filter((place, s) => place === order[s]).length;
    Object.assign(ui.root.dataset, {
      patch: slot,
      home: mine,
      place: places[slot],
      best,
      top: belief[best].toFixed(4),
      own: belief[mine].toFixed(4),
      shown: shown[mine].toFixed(4),
      right,
      context: visible.size,
    });
    const facts = [
      `patch from ${where(mine, cols)}, put at ${where(places[slot], cols)}${places[slot] === mine ? ', right' : ''}`,
      `its own place ${percent(belief[mine])}, most likely ${where(best, cols)} ${percent(belief[best])}`,
      `${right} of ${n} in place, chance 1`,
      `${visible.size} may be looked at`,
    ];
    const ms = model.get('milliseconds');
    if (model.get('live') && ms) facts.push(`${ms.toFixed(0)} ms`);
    ui.say(facts.join(' · '));
  };
  const load = () => {
    order = model.get('order');
    visible = new Set(model.get('context'));
    p = floats(model, 'probabilities');
    confusion = floats(model, 'confusion');
    putBack();
    look();
  };
  ui.add(
    toolbar(
      slider(ui, 'ratio', {
        label: 'not looked at',
        min: 0,
        max: 0.95,
        step: 0.05,
        format: v => `${Math.round(100 * v)} %`,
      }),
      number(ui, 'seed', {label: 'shuffle'}),
      radio(ui, 'assign', {
        label: 'put back',
        options: [
          ['each once', 'each place once'],
          ['most likely', 'where most likely'],
        ],
        busy: false,
      }),
      radio(ui, 'show', {label: 'map of', options: plainOptions('this patch', 'all pictures'), busy: false}),
    ),
    thumbnails(ui, pictures),
    h('div', {class: 'vsl-panes', style: '--pane: 218px'}, shuffled.el, back.el, map.el, truth.el),
    remark(
      'Blue: the patch that is looked at. Orange: where it comes from. Map: probability, from 0 to its own maximum. ' +
        '"All pictures": the mean over pictures of the answers for patches from that place, ' +
        'a row of the confusion map.',
    ),
  );
  ui.on('answered probabilities', load);
  ui.on('assign', () => {
    putBack();
    look();
  });
  ui.on('show patch', look);
  load();
  return () => ui.close();
}
export default { render };
