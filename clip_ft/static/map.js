// A map of the catalogue, or several maps of the same products side by side: pan, zoom, hover, lasso, keyboard.
// Points are drawn in one pass; the pointer finds the nearest one with a grid. Python, or the page, describes products.

const FRAME = `
  <div class="cf-map-tools">
    <label><span data-text="map.colour"></span> <select></select></label>
    <button type="button" data-text="map.lasso" data-do="lasso" aria-pressed="false"></button>
    <button type="button" data-text="map.whole" data-do="whole"></button>
    <button type="button" data-text="map.clear" data-do="clear"></button>
  </div>
  <div class="cf-map-status" role="status"></div>
  <div class="cf-map-panes"><div class="cf-map-card" aria-hidden="true" hidden></div></div>
  <div class="cf-map-legend"></div>
  <details class="cf-map-selected" hidden><summary></summary><ol></ol></details>
  <small class="cf-map-hint" data-text="map.hint"></small>`;
const OTHER = 9; // code of all other values
const MISSING = 255; // code of products without a value
const CELLS = 256; // of the grid, in each direction
const NEAR = { touch: 24 }; // pixels around the pointer in which a point is found; 12 around a mouse
const RAMP = ['440154', '46327e', '365c8d', '277f8e', '1fa187', '4ac16d', 'a0da39', 'fde725']; // viridis
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const bytes = view => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const element = (tag, values) => Object.assign(document.createElement(tag), values);

function rampColour(part) { // of a number from 0 to 1
  const place = part * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(place));
  const channel = (hex, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  const mixed = [0, 1, 2].map(i => Math.round(
    channel(RAMP[low], i) + (place - low) * (channel(RAMP[low + 1], i) - channel(RAMP[low], i))));
  return `rgb(${mixed})`;
}

function cellIndex(points) { // points sorted by the cell of a grid, and where each cell starts
  const cells = new Uint32Array(points.length / 2);
  const starts = new Uint32Array(CELLS * CELLS + 1);
  for (let i = 0; i < cells.length; i++) {
    cells[i] = (points[2 * i + 1] >> 8) * CELLS + (points[2 * i] >> 8);
    starts[cells[i] + 1]++;
  }
  for (let i = 0; i < CELLS * CELLS; i++) starts[i + 1] += starts[i];
  const next = starts.slice();
  const order = new Uint32Array(cells.length);
  for (let i = 0; i < cells.length; i++) order[next[cells[i]]++] = i;
  return { starts, order };
}

function inside(polygon, x, y) { // even-odd rule
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i];
    const [bx, by] = polygon[j];
    if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

class Plane { // one map: its points, and its two canvases, one for the points and one for what changes quickly
  constructor(points, figure) {
    this.points = points;
    this.index = cellIndex(points);
    [this.below, this.above] = figure.querySelectorAll('canvas');
  }

  fit(view) { // sizes in device pixels, and the transformation from uint16 to them
    const scale = devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.below.parentNode;
    for (const canvas of [this.below, this.above]) {
      const size = { width: Math.round(clientWidth * scale), height: Math.round(clientHeight * scale) };
      if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
    }
    this.dpr = scale;
    this.size = Math.min(this.below.width, this.below.height) * .94 * view.zoom / 65535;
    this.left = this.below.width / 2 - view.x * this.size;
    this.top = this.below.height / 2 - view.y * this.size;
  }

  place(i) { return [this.points[2 * i] * this.size + this.left, this.points[2 * i + 1] * this.size + this.top]; }

  unplace(event) { // from a position of the pointer to uint16
    const box = this.above.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top].map(pixels => pixels * this.dpr);
    return [(at[0] - this.left) / this.size, (at[1] - this.top) / this.size];
  }

  nearest(event) { // number of the point that is nearest to the pointer, or -1
    const [x, y] = this.unplace(event);
    const radius = (NEAR[event.pointerType] ?? 12) * this.dpr / this.size;
    const cell = value => Math.max(0, Math.min(CELLS - 1, Math.floor(value / 256)));
    let best = -1;
    let least = radius * radius;
    for (let row = cell(y - radius); row <= cell(y + radius); row++) {
      const { starts, order } = this.index;
      for (let k = starts[row * CELLS + cell(x - radius)]; k < starts[row * CELLS + cell(x + radius) + 1]; k++) {
        const away = (this.points[2 * order[k]] - x) ** 2 + (this.points[2 * order[k] + 1] - y) ** 2;
        if (away < least) [best, least] = [order[k], away];
      }
    }
    return best;
  }

  next(from, [dx, dy]) { // nearest point in a direction, within 45 degrees
    const [x, y] = from < 0 ? [32767, 32767] : [this.points[2 * from], this.points[2 * from + 1]];
    let [best, least] = [from, Infinity];
    for (let i = 0; i < this.points.length / 2; i++) {
      const [ax, ay] = [this.points[2 * i] - x, this.points[2 * i + 1] - y];
      const along = ax * dx + ay * dy;
      const away = ax * ax + ay * ay;
      if (i !== from && away < least && along > 0 && 2 * along * along >= away) [best, least] = [i, away];
    }
    return best;
  }

  draw(order, colours, codes, selected) {
    const context = this.below.getContext('2d');
    const count = codes.length;
    const total = this.points.length / 2;
    const width = Math.max(2, Math.min(8, 350 / Math.sqrt(total))) * this.dpr;
    context.clearRect(0, 0, this.below.width, this.below.height);
    for (const pass of selected ? [0, 1] : [1]) { // what is not selected is pale, and below
      context.globalAlpha = pass ? 1 : .12;
      for (let k = 0; k < total; k++) {
        const row = order[k % count];
        if (selected && selected[row] !== pass) continue;
        const [x, y] = this.place(k < count ? row : row + count);
        if (x < -width || y < -width || x > this.below.width + width || y > this.below.height + width) continue;
        context.fillStyle = colours[codes[row]];
        if (k >= count) { // a text is a cross
          context.fillRect(x - width, y - this.dpr / 2, 2 * width, this.dpr);
          context.fillRect(x - this.dpr / 2, y - width, this.dpr, 2 * width);
        } else if (width < 4 * this.dpr) {
          context.fillRect(x - width / 2, y - width / 2, width, width);
        } else {
          context.beginPath();
          context.arc(x, y, width / 2, 0, 7);
          context.fill();
        }
      }
    }
    context.globalAlpha = 1;
  }

  mark(row, count, shape, colour) { // the product under the pointer, with a line to its text, and the lasso
    const context = this.above.getContext('2d');
    context.clearRect(0, 0, this.above.width, this.above.height);
    Object.assign(context, { strokeStyle: colour, lineWidth: 2 * this.dpr });
    if (row >= 0) {
      const ends = this.points.length / 2 > count ? [row, row + count] : [row];
      context.beginPath();
      if (ends.length > 1) ends.forEach((i, k) => context[k ? 'lineTo' : 'moveTo'](...this.place(i)));
      for (const i of ends) {
        const [x, y] = this.place(i);
        context.moveTo(x + 7 * this.dpr, y);
        context.arc(x, y, 7 * this.dpr, 0, 7);
      }
      context.stroke();
    }
    if (shape) {
      context.setLineDash([5 * this.dpr, 4 * this.dpr]);
      context.beginPath();
      for (const [x, y] of shape) context.lineTo(x * this.size + this.left, y * this.size + this.top);
      context.closePath();
      context.stroke();
      context.setLineDash([]);
    }
  }
}

function render({ model, el }) {
  el.classList.add('cf-map');
  el.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.innerHTML = FRAME;
  const texts = model.get('texts');
  const plurals = new Intl.PluralRules(texts.language);
  const phrase = (key, values = {}) => { // text of the language, with values; n decides about the plural
    const text = texts[key];
    const form = typeof text === 'string' ? text : text[plurals.select(values.n)] ?? text.other;
    return form.replace(/\{(\w+)\}/g, (_, name) => values[name].toLocaleString(texts.language));
  };
  for (const each of el.querySelectorAll('[data-text]')) each.textContent = phrase(each.dataset.text);
  const [status, panes, card, legend, list] =
    ['status', 'panes', 'card', 'legend', 'selected'].map(name => el.querySelector(`.cf-map-${name}`));
  const select = el.querySelector('select');
  const lassoButton = el.querySelector('[data-do=lasso]');
  const columns = model.get('columns');
  const count = model.get('count');
  const allCodes = bytes(model.get('codes'));
  const raw = bytes(model.get('points')).slice(); // aligned
  const points = new Uint16Array(raw.buffer);
  const titles = model.get('titles');
  const view = { x: 32767, y: 32767, zoom: 1 };
  let [row, pane, asked, selected, shape, anchor] = [-1, 0, -1, null, null, null];
  let codes, order, colours;
  let announced = false; // the status says something that a late description must not replace
  const ends = new AbortController();
  const listen = (target, name, call, options) =>
    target.addEventListener(name, call, { signal: ends.signal, ...options });

  const planes = titles.map((title, i) => {
    const about = [title, phrase('map.about', { n: count })].filter(Boolean).join('. ');
    const figure = element('figure', { innerHTML: '<figcaption></figcaption><div class="cf-map-plane"><canvas></canvas>' +
      '<canvas tabindex="0" role="application"></canvas></div>' });
    figure.firstChild.textContent = title;
    figure.querySelectorAll('canvas')[1].setAttribute('aria-label', about);
    panes.append(figure);
    const size = points.length / titles.length;
    return new Plane(points.subarray(i * size, (i + 1) * size), figure);
  });

  let waiting = false;
  let whole = true;
  const redraw = all => { // at most once per frame
    whole ||= all;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const colour = getComputedStyle(el).getPropertyValue('--fg');
      planes.forEach((plane, i) => {
        if (!plane.below.parentNode.clientWidth) return;
        plane.fit(view);
        if (whole) plane.draw(order, colours, codes, selected);
        plane.mark(row, count, i === pane ? shape : null, colour);
      });
      whole = false;
    });
  };

  const recolour = () => { // after a change of the column or of the theme
    const dark = document.body.dataset.jpThemeLight === 'false' ||
      (!document.body.dataset.jpThemeLight && matchMedia('(prefers-color-scheme: dark)').matches);
    el.classList.toggle('cf-dark', dark);
    const column = columns[select.selectedIndex];
    const style = getComputedStyle(el);
    codes = allCodes.subarray(select.selectedIndex * count, (select.selectedIndex + 1) * count);
    colours = Array.from({ length: 256 }, (_, i) => column.numeric && i < MISSING ? rampColour(i / 254)
      : style.getPropertyValue(`--map-${i === MISSING ? OTHER + 1 : Math.min(i, OTHER)}`));
    const rank = code => [MISSING, column.numeric ? -1 : OTHER].indexOf(code); // grey points are drawn first
    const rows = Uint32Array.from({ length: count }, (_, i) => i);
    order = Uint32Array.from([0, 1, -1].flatMap(drawn => [...rows.filter(i => rank(codes[i]) === drawn)]));
    legend.replaceChildren();
    if (column.numeric) {
      const scale = element('span', { className: 'cf-map-scale' });
      scale.style.background = `linear-gradient(to right, ${RAMP.map(hex => `#${hex}`)})`;
      legend.append(column.labels[0], scale, column.labels[1]);
    }
    const shown = column.numeric ? [] : column.labels.map((label, code) => [code, label]);
    for (const [code, label] of [...shown, ...column.rest]) {
      const button = element('button', { type: 'button', title: phrase('map.select') });
      const dot = element('i');
      dot.style.background = colours[code];
      button.append(dot, label);
      button.onclick = () => choose(Uint8Array.from(codes, value => value === code));
      legend.append(button);
    }
    redraw(true);
  };

  const ask = () => {
    if (asked >= 0 || row < 0) return;
    asked = row;
    model.send({ action: 'describe', row });
  };
  const point = (next, of) => { // to a product; -1: to none
    if (next === row && of === pane) return;
    [row, pane] = [next, of];
    announced = false;
    card.hidden = true;
    ask();
    redraw(false);
  };
  const showCard = (about, of, jpeg) => { // name and values of a product
    asked = -1;
    if (of !== row) return void ask();
    card.replaceChildren();
    if (jpeg) { // bytes from Python, or the address of an image in the page
      const src = typeof jpeg === 'string' ? jpeg : URL.createObjectURL(new Blob([jpeg], { type: 'image/jpeg' }));
      card.append(element('img', { alt: '', src, onload: () => URL.revokeObjectURL(src) }));
    }
    card.append(about[0], ...about.slice(1).map(textContent => element('small', { textContent })));
    if (!announced) status.textContent = about.join(', ');
    const plane = planes[pane];
    const [x, y] = plane.place(row).map(pixels => pixels / plane.dpr);
    const [box, frame] = [plane.above.getBoundingClientRect(), panes.getBoundingClientRect()];
    card.hidden = false;
    const left = box.left - frame.left + x + 14;
    const fits = left + card.offsetWidth < frame.width;
    card.style.left = `${fits ? left : Math.max(0, left - card.offsetWidth - 28)}px`;
    card.style.top = `${box.top - frame.top + Math.max(0, Math.min(y, box.height - card.offsetHeight))}px`;
  };

  const choose = mask => { // select products; null: none
    const rows = mask ? Uint32Array.from(mask.keys()).filter(i => mask[i]) : new Uint32Array();
    selected = rows.length ? mask : null;
    announced = true;
    model.send({ action: 'select' }, undefined, [rows.buffer]);
    redraw(true);
  };
  const chooseInside = polygon => {
    const plane = planes[pane];
    const mask = new Uint8Array(count);
    for (let i = 0; i < plane.points.length / 2; i++) {
      if (inside(polygon, plane.points[2 * i], plane.points[2 * i + 1])) mask[i % count] = 1;
    }
    choose(mask);
  };
  const showSelection = ({ total, names }) => {
    status.textContent = phrase('map.selected', { n: total, total: count });
    list.hidden = !total;
    list.querySelector('summary').textContent = phrase('map.list', { n: total });
    const more = total > names.length ? [phrase('map.more', { n: total - names.length })] : [];
    list.querySelector('ol').replaceChildren(...[...names, ...more].map(textContent => element('li', { textContent })));
  };

  const zoom = (factor, [x, y]) => { // around a place that stays where it is
    const after = Math.max(.5, Math.min(200, view.zoom * factor));
    const share = view.zoom / after;
    Object.assign(view, { x: x + (view.x - x) * share, y: y + (view.y - y) * share, zoom: after });
    card.hidden = true;
    redraw(true);
  };
  const move = (dx, dy, plane) => {
    view.x -= dx * plane.dpr / plane.size;
    view.y -= dy * plane.dpr / plane.size;
    card.hidden = true;
    redraw(true);
  };
  const follow = plane => { // the product of the keyboard, if it is out of sight
    const [x, y] = plane.place(row);
    if (row < 0 || (x >= 0 && y >= 0 && x <= plane.above.width && y <= plane.above.height)) return;
    Object.assign(view, { x: plane.points[2 * row], y: plane.points[2 * row + 1] });
    redraw(true);
  };
  const show = next => { // a product, and its neighbours
    const { points } = planes[0];
    Object.assign(view, { x: points[2 * next], y: points[2 * next + 1], zoom: 8 });
    point(next, 0);
    redraw(true);
  };
  const showWhole = () => {
    Object.assign(view, { x: 32767, y: 32767, zoom: 1 });
    redraw(true);
  };
  const clear = () => { [shape, anchor] = [null, null]; choose(null); };

  const rectangle = plane => { // of the two products of the keyboard
    const [ax, ay] = [plane.points[2 * anchor], plane.points[2 * anchor + 1]];
    const [bx, by] = [plane.points[2 * row], plane.points[2 * row + 1]];
    const [left, right, top, bottom] = [Math.min(ax, bx) - 1, Math.max(ax, bx) + 1, Math.min(ay, by) - 1, Math.max(ay, by) + 1];
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  };
  const onKey = (event, plane, i) => {
    const direction = KEYS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (direction && event.shiftKey) {
      move(-60 * direction[0], -60 * direction[1], plane);
    } else if (direction) {
      point(plane.next(row, direction) % count, i);
      follow(plane);
      if (anchor !== null) shape = rectangle(plane);
    } else if (event.key === '+' || event.key === '=' || event.key === '-') {
      const at = row < 0 ? [view.x, view.y] : [plane.points[2 * row], plane.points[2 * row + 1]];
      zoom(event.key === '-' ? 1 / 1.5 : 1.5, at);
    } else if (event.key === '0') {
      showWhole();
    } else if (event.key === 'Enter' && row >= 0) {
      if (anchor === null) {
        anchor = row;
        announced = true;
        status.textContent = phrase('map.start');
      } else {
        const polygon = rectangle(plane);
        [shape, anchor] = [null, null];
        chooseInside(polygon);
      }
    } else if (event.key === 'Escape') {
      clear();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    redraw(false);
  };

  planes.forEach((plane, i) => {
    const canvas = plane.above;
    const down = new Map(); // pointers on the map; with two, it is zoomed
    let drag = null; // position of the pointer while it moves the map or draws a lasso
    const span = () => { // distance of two pointers, and the place between them
      const [a, b] = down.values();
      const [clientX, clientY] = [(a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2];
      return [Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY), plane.unplace({ clientX, clientY })];
    };
    const pointAt = event => {
      const found = plane.nearest(event);
      point(found < 0 ? -1 : found % count, i);
    };
    listen(canvas, 'pointerdown', event => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      down.set(event.pointerId, event);
      const lasso = event.shiftKey || lassoButton.getAttribute('aria-pressed') === 'true';
      drag = down.size === 1 ? { lasso, x: event.clientX, y: event.clientY, moved: 0 } : null;
      pane = i;
      shape = drag?.lasso ? [plane.unplace(event)] : null;
    });
    listen(canvas, 'pointermove', event => {
      if (down.size === 2 && down.has(event.pointerId)) {
        const [before] = span();
        down.set(event.pointerId, event);
        const [after, between] = span();
        zoom(after / Math.max(1, before), between);
      } else if (drag?.lasso) {
        shape.push(plane.unplace(event));
        redraw(false);
      } else if (drag) {
        drag.moved += Math.hypot(event.clientX - drag.x, event.clientY - drag.y);
        if (drag.moved < 4) return; // a finger that taps is never quite still
        move(event.clientX - drag.x, event.clientY - drag.y, plane);
        Object.assign(drag, { x: event.clientX, y: event.clientY });
      } else if (!down.size) {
        pointAt(event);
      }
    });
    const drop = event => {
      const polygon = shape;
      const last = drag;
      down.delete(event.pointerId);
      [drag, shape] = [null, null];
      if (event.type === 'pointerup' && last?.lasso && polygon.length > 2) chooseInside(polygon);
      if (event.type === 'pointerup' && last && !last.lasso && last.moved < 4) pointAt(event);
      redraw(false);
    };
    listen(canvas, 'pointerup', drop);
    listen(canvas, 'pointercancel', drop);
    listen(canvas, 'pointerleave', event => { if (!drag && event.pointerType !== 'touch') point(-1, i); });
    listen(canvas, 'wheel', event => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), plane.unplace(event));
    }, { passive: false });
    listen(canvas, 'keydown', event => onKey(event, plane, i));
  });

  for (const column of columns) select.append(element('option', { textContent: column.label }));
  select.selectedIndex = model.get('column');
  listen(select, 'change', recolour);
  listen(el.querySelector('[data-do=whole]'), 'click', showWhole);
  listen(el.querySelector('[data-do=clear]'), 'click', clear);
  listen(lassoButton, 'click', () => {
    lassoButton.setAttribute('aria-pressed', String(lassoButton.getAttribute('aria-pressed') !== 'true'));
  });
  const onMessage = (message, buffers) => {
    if (message.about) showCard(message.about, message.row, buffers?.[0]);
    if (message.selection) showSelection(message.selection);
    if (message.show !== undefined) show(message.show);
  };
  model.on('msg:custom', onMessage);
  listen(matchMedia('(prefers-color-scheme: dark)'), 'change', recolour);
  const theme = new MutationObserver(recolour);
  theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light'] });
  const sizes = new ResizeObserver(() => (colours[MISSING] ? redraw(true) : recolour())); // no style until it is shown
  sizes.observe(panes);
  recolour();

  return () => {
    ends.abort();
    theme.disconnect();
    sizes.disconnect();
    model.off('msg:custom', onMessage);
  };
}

export default { render };
