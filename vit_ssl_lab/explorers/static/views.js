// ViewsExplorer: what augmentation does to one picture, and where on it each view was cut out.
function render({model, el}) {
  const ui = shell(model, el, 'Views explorer');
  const [, height, width] = model.get('shape');
  const pictures = gallery(model);
  const COLOURS = ['#e69f00', '#56b4e9', '#009e73', '#cc79a7'];
  let hover = -1;
  let rolls = 1;
  let count = 1;
  let boxes = [];
  let shots = [];

  const picture = () => pictures[model.get('picture')];
  const source = pane(ui, {
    caption: 'source and crop boxes',
    rows: 1,
    cols: 1,
    ratio: height / width,
    label: 'source picture with the crop boxes of its views',
    draw(context, wide, tall) {
      context.drawImage(picture(), 0, 0, wide, tall);
      boxes.forEach(([top, left, h2, w2], i) => {
        if (hover >= 0 && i !== hover) return;
        const x = (left * wide) / width;
        const y = (top * tall) / height;
        const bw = (w2 * wide) / width;
        const bh = (h2 * tall) / height;
        context.lineWidth = 9;
        context.strokeStyle = 'rgba(0,0,0,.6)';
        context.strokeRect(x + 4, y + 4, bw - 8, bh - 8);
        context.lineWidth = 5;
        context.strokeStyle = COLOURS[Math.floor(i / rolls) % 4];
        context.strokeRect(x + 4, y + 4, bw - 8, bh - 8);
      });
    },
  });
  const sheet = h('div', {class: 'vsl-sheet'});
  let board = null;
  const over = cell => {
    hover = cell;
    source.redraw();
    board.redraw();
    tell();
  };
  const tell = () => {
    ui.root.dataset.view = hover;
    if (hover >= 0)
      ui.say(`view ${Math.floor(hover / rolls) + 1}, draw ${(hover % rolls) + 1}: ${model.get('words')[hover]}`);
    else ui.say(`${count} view${count > 1 ? 's' : ''} of one picture, drawn ${rolls} times; each row is one view`);
  };
  const load = () => {
    const sizes = model.get('sizes');
    const data = bytes(model, 'views');
    boxes = model.get('boxes');
    count = sizes.length;
    rolls = count ? boxes.length / count : 0;
    shots = [];
    let offset = 0;
    for (const [vh, vw] of sizes)
      for (let i = 0; i < rolls; i++) {
        shots.push(bitmap(data, vh, vw, offset));
        offset += vh * vw * 3;
      }
    hover = -1;
    board = pane(ui, {
      caption: 'views',
      rows: count,
      cols: rolls,
      ratio: count / rolls,
      label: 'views: point at one, or move with the arrow keys, to see its crop box and its parameters',
      draw(context, wide, tall) {
        const cw = wide / rolls;
        const ct = tall / count;
        shots.forEach((shot, i) => {
          const x = (i % rolls) * cw;
          const y = Math.floor(i / rolls) * ct;
          context.fillStyle = COLOURS[Math.floor(i / rolls) % 4];
          context.fillRect(x + 1, y + 1, cw - 2, ct - 2);
          context.drawImage(shot, x + 4, y + 4, cw - 8, ct - 8);
        });
        if (hover >= 0) outline(context, wide, tall, count, rolls, hover);
      },
      on: {
        hover: over,
        press: over,
        move: over,
        focus() {
          over(board.cursor());
        },
      },
    });
    board.canvas.width = 128 * rolls;
    board.canvas.height = 128 * count; // sharp at this width
    board.el.style.width = `min(100%, ${96 * rolls}px)`;
    sheet.replaceChildren(board.el);
    ui.root.dataset.views = shots.length;
    board.redraw();
    source.redraw();
    tell();
  };

  const times = v => `× ${v.toFixed(1)}`;
  const strength = (name, label) => slider(ui, name, {label, min: 0, max: 2, step: 0.1, format: times});
  const choice = h(
    'select',
    {
      'aria-label': 'preset',
      'data-trait': 'preset',
      disabled: !ui.can('preset'),
      onchange: event => ui.send({preset: event.target.value}),
    },
    model.get('presets').map(name => h('option', {value: name}, name)),
  );
  const readPreset = () => {
    choice.value = model.get('preset');
  };
  ui.on('preset', readPreset);
  readPreset();
  ui.add(
    toolbar(
      h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, 'preset'), choice),
      number(ui, 'seed', {label: 'seed'}),
      strength('crop', 'crop'),
      strength('colour', 'colour'),
      strength('grey', 'grey'),
      strength('blur', 'blur'),
      strength('solarize', 'solarize'),
    ),
    thumbnails(ui, pictures),
    paneRow(source.el, sheet),
    remark(
      'Strengths multiply the preset: 1 is the preset itself, 0 is off. Views are shown before they are normalised.',
    ),
  );
  ui.on('views answered', load);
  load();
  return () => ui.close();
}
export default { render };
