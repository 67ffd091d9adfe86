// Shared by every explorer: Python puts this text before the explorer's own file,
// so that each widget stays one module without imports.

// An element with attributes and children; `onclick: f` listens.
function h(tag, attrs = {}, ...kids) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (value === false || value == null) continue;
    if (name.startsWith('on')) el.addEventListener(name.slice(2), value);
    else el.setAttribute(name, value === true ? '' : value);
  }
  // JupyterLab takes arrows, space and enter for its own shortcuts before the element sees them,
  // unless the element says no.
  if (['button', 'input', 'select', 'canvas'].includes(tag)) el.dataset.lmSuppressShortcuts = 'true';
  el.append(...kids.flat().filter(kid => kid != null));
  return el;
}

// Binary traits arrive as DataViews.
function bytes(model, name) {
  const view = model.get(name);
  return view && view.byteLength ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(0);
}
function floats(model, name) {
  const b = bytes(model, name);
  return new Float32Array(b.slice().buffer);
}

// The frame of every explorer: title, content, error, status, and the note of a page without a kernel.
// It keeps count of what it listens to, because a model outlives its views.
function shell(model, el, title) {
  const heard = [];
  const timers = {};
  const error = h('p', {class: 'vsl-alert', role: 'alert'});
  const status = h('p', {class: 'vsl-status', role: 'status', 'aria-live': 'polite'});
  const live = model.get('live');
  const note = live ? null : remark(model.get('note'));
  const body = h('div');
  const root = h(
    'section',
    {class: 'vsl', 'aria-label': title, 'data-busy': 'false', 'data-live': String(live)},
    h('p', {class: 'vsl-title'}, title),
    body,
    error,
    status,
    note,
  );
  el.append(root);
  const ui = {
    model,
    root,
    body,
    status,
    on(names, f) {
      for (const name of names.split(' ')) {
        model.on(`change:${name}`, f);
        heard.push([`change:${name}`, f]);
      }
    },
    // Does a change of this trait do something here? Always with a kernel; in a page only what the page can answer.
    can(name) {
      return live || (model.get('offline') || []).includes(name);
    },
    // Change traits now, tell the kernel a little later: a drag over ten cells is one message.
    send(changes, {busy = true, delay = 80} = {}) {
      for (const [name, value] of Object.entries(changes)) model.set(name, value);
      if (busy) root.dataset.busy = 'true';
      clearTimeout(timers.send);
      timers.send = setTimeout(() => model.save_changes(), delay);
    },
    // Content; what is null is left out.
    add(...kids) {
      body.append(...kids.flat().filter(kid => kid != null));
    },
    say(text) {
      if (status.textContent !== text) status.textContent = text;
    },
    close() {
      clearTimeout(timers.send);
      for (const [name, f] of heard) model.off(name, f);
    },
  };
  const showError = () => {
    error.textContent = model.get('error');
  };
  const idle = () => {
    root.dataset.busy = 'false';
    root.dataset.answered = model.get('answered');
  };
  ui.on('error', showError);
  ui.on('answered', idle);
  showError();
  idle();
  return ui;
}

// A labelled slider: the number follows the finger, the trait changes on release (or a key).
function slider(ui, name, {label, min, max, step, format = String, changes = v => ({[name]: v})}) {
  const out = h('output');
  const input = h('input', {
    type: 'range',
    min,
    max,
    step,
    'data-trait': name,
    'aria-label': label,
    disabled: !ui.can(name),
  });
  const write = () => {
    out.textContent = format(+input.value);
    input.setAttribute('aria-valuetext', out.textContent);
  };
  const read = () => {
    input.value = ui.model.get(name);
    write();
  };
  input.addEventListener('input', write);
  input.addEventListener('change', () => ui.send(changes(+input.value)));
  ui.on(name, read);
  read();
  return h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, label), input, out);
}

function number(ui, name, {label, min = 0, max = 999999}) {
  const input = h('input', {
    type: 'number',
    min,
    max,
    step: 1,
    'data-trait': name,
    'aria-label': label,
    disabled: !ui.can(name),
  });
  const read = () => {
    input.value = ui.model.get(name);
  };
  const write = value => ui.send({[name]: Math.min(max, Math.max(min, Math.round(+value) || 0))});
  input.addEventListener('change', () => write(input.value));
  ui.on(name, read);
  read();
  return h(
    'span',
    {class: 'vsl-field'},
    h('label', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, label), input),
    h(
      'button',
      {
        type: 'button',
        'aria-label': `next ${label}`,
        title: `next ${label}`,
        disabled: !ui.can(name),
        onclick: () => write(+ui.model.get(name) + 1),
      },
      'next',
    ),
  );
}

// One of a few: a radio group of buttons, arrow keys move. `options` is [[value, text], ...].
function radio(
  ui,
  name,
  {label, options, changes = v => ({[name]: v}), busy = true, cls = 'vsl-group', paint = null},
) {
  const buttons = options.map(([value, text]) =>
    h(
      'button',
      {
        type: 'button',
        role: 'radio',
        'data-value': String(value),
        disabled: !ui.can(name),
        'aria-label': paint ? text : null,
        title: paint ? text : null,
        onclick: () => pick(value),
      },
      paint ? paint(value) : text,
    ),
  );
  const pick = value => {
    if (value !== ui.model.get(name)) ui.send(changes(value), {busy});
    read();
  };
  const read = () =>
    options.forEach(([value], i) => {
      const on = value === ui.model.get(name);
      buttons[i].setAttribute('aria-checked', on);
      buttons[i].tabIndex = on ? 0 : -1;
    });
  const group = h(
    'span',
    {
      class: cls,
      role: 'radiogroup',
      'aria-label': label,
      'data-trait': name,
      onkeydown: event => {
        const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        const n = options.length;
        const i = (options.findIndex(([v]) => v === ui.model.get(name)) + step + n) % n;
        pick(options[i][0]);
        buttons[i].focus();
      },
    },
    buttons,
  );
  ui.on(name, read);
  read();
  if (!options.some(([v]) => v === ui.model.get(name))) buttons[0].tabIndex = 0;
  return paint ? group : h('span', {class: 'vsl-field'}, h('span', {class: 'vsl-name'}, label), group);
}

// RGB bytes of one picture as a small canvas that others draw from.
function bitmap(rgb, height, width, offset = 0) {
  const canvas = h('canvas', {width, height});
  const context = canvas.getContext('2d');
  const data = context.createImageData(width, height);
  for (let i = 0, o = offset; i < data.data.length; i += 4, o += 3) {
    data.data[i] = rgb[o];
    data.data[i + 1] = rgb[o + 1];
    data.data[i + 2] = rgb[o + 2];
    data.data[i + 3] = 255;
  }
  context.putImageData(data, 0, 0);
  return canvas;
}

// The pictures of an explorer (traits `images`, `shape`) and the row to choose one from (trait `picture`).
function gallery(model) {
  const [n, height, width] = model.get('shape');
  const rgb = bytes(model, 'images');
  return Array.from({length: n}, (_, i) => bitmap(rgb, height, width, i * height * width * 3));
}
function copyOf(canvas) {
  const copy = h('canvas', {width: canvas.width, height: canvas.height, 'aria-hidden': 'true'});
  copy.getContext('2d').drawImage(canvas, 0, 0);
  return copy;
}
// A row of controls, a row of panes, a remark in small print, a button.
function toolbar(...kids) {
  return h('div', {class: 'vsl-bar'}, ...kids);
}
function paneRow(...kids) {
  return h('div', {class: 'vsl-panes'}, ...kids);
}
function remark(...kids) {
  return h('p', {class: 'vsl-note'}, ...kids);
}
function pushButton(attrs, ...kids) {
  return h('button', {type: 'button', ...attrs}, ...kids);
}
// Options whose text is their value.
function plainOptions(...values) {
  return values.map(value => [value, value]);
}
// The row to choose a picture from, where there are several.
function thumbnails(ui, pictures) {
  return pictures.length < 2 ? null : toolbar(chooser(ui, pictures));
}
function chooser(ui, pictures) {
  if (pictures.length < 2) return null;
  const names = ui.model.get('names');
  return radio(ui, 'picture', {
    label: 'picture',
    cls: 'vsl-thumbs',
    options: pictures.map((_, i) => [i, names[i] || `picture ${i + 1}`]),
    paint: i => copyOf(pictures[i]),
  });
}

// Colours: viridis for amounts, blue-white-red centred at zero for what has a sign.
const VIRIDIS = rampOf('440154 472c7a 3b518b 2c718e 21908d 27ad81 5cc863 aadc32 fde725');
const SIGNED = rampOf('053061 4393c3 d1e5f0 f7f7f7 fddbc7 d6604d 67001f');
// Classes: told apart by colour-blind readers, too, as far as ten colours can be.
const CLASS_COLOURS = rampOf('0072b2 d55e00 009e73 cc79a7 e69f00 56b4e9 777777 8c564b 9467bd bcbd22').map(css);
function rampOf(colours) {
  return colours.split(' ').map(c => [0, 2, 4].map(i => parseInt(c.slice(i, i + 2), 16)));
}
function shade(ramp, t) {
  const x = Math.min(1, Math.max(0, t || 0)) * (ramp.length - 1);
  const i = Math.min(ramp.length - 2, Math.floor(x));
  const f = x - i;
  return ramp[i].map((v, k) => Math.round(v + (ramp[i + 1][k] - v) * f));
}
function css([r, g, b]) {
  return `rgb(${r},${g},${b})`;
}
// values -> canvas of rows x cols, one pixel a value; `scale` maps a value to 0..1
function heat(values, rows, cols, ramp, scale) {
  const rgb = new Uint8Array(rows * cols * 3);
  for (let i = 0; i < rows * cols; i++) rgb.set(shade(ramp, scale(values[i])), i * 3);
  return bitmap(rgb, rows, cols);
}
function legend(ramp) {
  const low = h('span');
  const high = h('span');
  const bar = h('div', {
    class: 'vsl-ramp',
    style: `background: linear-gradient(to right, ${ramp.map(css).join(', ')})`,
  });
  return {
    el: h('div', {}, bar, h('div', {class: 'vsl-ends'}, low, high)),
    set(a, b) {
      low.textContent = a;
      high.textContent = b;
    },
  };
}

// A pane: a caption and a canvas divided into rows x cols cells.
// `draw(context, width, height)` paints it at screen resolution.
// With `on` it answers to the pointer and the keyboard: on.hover(cell) while over it (-1 when gone),
// on.press(cell), on.drag(cell), on.release(), on.move(cell, event) for arrow keys,
// on.key(cell, event) for space and enter.
function pane(ui, {caption, rows, cols, ratio = 1, label, draw, on = null, cls = ''}) {
  const canvas = h('canvas', {
    class: `${on ? 'vsl-live' : ''} ${cls}`,
    role: on ? 'application' : 'img',
    'aria-label': label || caption,
    tabindex: on ? 0 : null,
  });
  const text = h('figcaption', {title: caption}, caption);
  const el = h('figure', {}, text, canvas);
  const size = 384;
  canvas.width = size;
  canvas.height = Math.round(size * ratio);
  let cursor = 0;
  let down = false;
  const self = {
    el,
    canvas,
    caption(value) {
      text.textContent = value;
      text.title = value;
    },
    cursor(cell) {
      if (cell !== undefined) {
        cursor = cell;
        canvas.dataset.cursor = cell;
      }
      return cursor;
    },
    redraw() {
      const context = canvas.getContext('2d');
      context.imageSmoothingEnabled = false;
      context.clearRect(0, 0, canvas.width, canvas.height);
      draw(context, canvas.width, canvas.height);
    },
  };
  self.cursor(0);
  if (on) {
    const at = event => {
      const box = canvas.getBoundingClientRect();
      const col = Math.min(cols - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * cols)));
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
      return row * cols + col;
    };
    let last = -1;
    canvas.addEventListener('pointermove', event => {
      const cell = at(event);
      if (cell === last) return;
      last = cell;
      canvas.dataset.hover = cell;
      if (down && on.drag) on.drag(cell);
      if (on.hover) on.hover(cell);
    });
    canvas.addEventListener('pointerdown', event => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      down = true;
      last = at(event);
      self.cursor(last);
      if (on.press) on.press(last);
    });
    const up = () => {
      if (down) {
        down = false;
        if (on.release) on.release();
      }
    };
    canvas.addEventListener('pointerup', up);
    canvas.addEventListener('pointercancel', up);
    canvas.addEventListener('pointerleave', () => {
      last = -1;
      canvas.dataset.hover = -1;
      if (on.hover) on.hover(-1);
    });
    canvas.addEventListener('keydown', event => {
      const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
      if (step) {
        const row = Math.min(rows - 1, Math.max(0, Math.floor(cursor / cols) + step[0]));
        const col = Math.min(cols - 1, Math.max(0, (cursor % cols) + step[1]));
        self.cursor(row * cols + col);
        if (on.move) on.move(cursor, event);
      } else if ((event.key === ' ' || event.key === 'Enter') && on.key) on.key(cursor, event);
      else return;
      event.preventDefault();
      event.stopPropagation(); // the page must not scroll
    });
    canvas.addEventListener('focus', () => {
      canvas.dataset.focus = 'true';
      self.redraw();
      if (on.focus) on.focus();
    });
    canvas.addEventListener('blur', () => {
      canvas.dataset.focus = 'false';
      self.redraw();
    });
  }
  return self;
}

// A line, a filled disc and a ring in the present colours.
function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}
function disc(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}
function ring(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}

// A box around one cell: dark and light, so that it shows on any picture.
function outline(context, width, height, rows, cols, cell, colour = '#fff') {
  if (cell < 0) return;
  const cellWidth = width / cols;
  const cellHeight = height / rows;
  const x = (cell % cols) * cellWidth;
  const y = Math.floor(cell / cols) * cellHeight;
  context.lineWidth = 6;
  context.strokeStyle = '#000';
  context.strokeRect(x + 2, y + 2, cellWidth - 4, cellHeight - 4);
  context.lineWidth = 3;
  context.strokeStyle = colour;
  context.strokeRect(x + 2, y + 2, cellWidth - 4, cellHeight - 4);
}
function where(cell, cols) {
  return `row ${Math.floor(cell / cols) + 1}, column ${(cell % cols) + 1}`;
}
const percent = x => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;
