// The filters of a page without a server, with the elements and class names of the widgets.

const FEW = 5; // values of a column at first
const MANY = 30; // at most

export const make = (tag, className, properties = {}, ...children) => {
  const el = Object.assign(document.createElement(tag), { className }, properties);
  el.append(...children);
  return el;
};

function findValues(values, typed) { // the text itself, then values that begin with it, have a word that does, or contain it
  const wanted = typed.toLowerCase();
  const rank = value => [value === wanted, value.startsWith(wanted), value.includes(` ${wanted}`), value.includes(wanted)].indexOf(true);
  return values.map(value => [rank(value.toLowerCase()), value]).filter(([place]) => place >= 0)
    .sort((a, b) => a[0] - b[0]).map(([, value]) => value);
}

export class FacetBox { // check boxes for the values of one column
  constructor(facet, catalogue, onChange, isOpen) {
    Object.assign(this, { facet, catalogue, onChange, isOpen, chosen: [], counts: [], boxes: [], isExpanded: false });
    const [title, phrase] = [facet.label, catalogue.phrase.bind(catalogue)];
    this.icon = make('i', 'fa');
    this.head = make('button', 'jupyter-button cf-head', { type: 'button', title: phrase('facet.hint', { column: title }) }, this.icon, title);
    const label = phrase('facet.find', { column: title.toLowerCase() });
    this.find = make('input', '', { type: 'text', placeholder: label, ariaLabel: label, autocomplete: 'off' });
    this.search = make('div', 'widget-text widget-inline-hbox', {}, this.find);
    this.ticks = make('div', 'widget-box widget-vbox cf-ticks');
    this.numbers = make('div', 'widget-html-content');
    this.rows = make('div', 'widget-box', {}, this.ticks, make('div', 'widget-html cf-counts', {}, this.numbers));
    this.more = make('button', 'jupyter-button cf-plain', { type: 'button' });
    this.text = make('div', 'widget-html-content');
    this.hint = make('div', 'widget-html cf-hint', {}, this.text);
    this.el = make('div', 'widget-box widget-vbox cf-facet', {}, this.head, this.search, this.rows, this.more, this.hint);
    this.head.addEventListener('click', () => { this.isOpen = !this.isOpen; this.draw(); });
    this.more.addEventListener('click', () => { this.isExpanded = !this.isExpanded; this.draw(); });
    this.find.addEventListener('input', () => this.draw());
  }

  update(where) {
    this.chosen = where[this.facet.column] ?? [];
    this.counts = this.catalogue.counts(this.facet, where);
    this.draw();
  }

  draw() {
    const { chosen, counts, isOpen, isExpanded, catalogue } = this;
    const typed = this.find.value.trim();
    const found = findValues(counts.filter(([, number]) => number).map(([value]) => value), typed);
    const names = [...chosen, ...found.filter(value => !chosen.includes(value))];
    const shown = names.slice(0, Math.max(isExpanded || typed ? MANY : FEW, chosen.length));
    const hidden = Math.min(MANY, names.length) - shown.length;
    const tooMany = found.length - MANY;
    this.icon.className = `fa fa-angle-${isOpen ? 'up' : 'down'}`;
    this.head.ariaExpanded = isOpen;
    this.search.hidden = !isOpen || counts.length <= FEW + 3;
    this.rows.hidden = !isOpen;
    this.more.hidden = !isOpen || Boolean(typed) || !(isExpanded || hidden > 0);
    this.more.textContent = isExpanded ? catalogue.phrase('facet.fewer') : catalogue.phrase('facet.more', { n: hidden });
    this.text.textContent = typed && !found.length ? catalogue.phrase('facet.none', { typed })
      : tooMany > 0 && (typed || isExpanded) ? catalogue.phrase('facet.hidden', { n: tooMany }) : '';
    this.hint.hidden = !isOpen || !this.text.textContent;
    this.fill(shown, new Map(counts));
  }

  fill(shown, counts) { // boxes are used again, so that the focus stays where it is
    while (this.boxes.length < shown.length) this.boxes.push(this.box());
    this.ticks.replaceChildren(...this.boxes.slice(0, shown.length).map(box => box.row));
    this.numbers.replaceChildren(...shown.map(value => make('div', '', { textContent: (counts.get(value) ?? 0).toLocaleString(this.catalogue.language) })));
    shown.forEach((value, i) => {
      const title = this.catalogue.phrase('facet.count', { value, n: counts.get(value) ?? 0 });
      Object.assign(this.boxes[i], { value });
      Object.assign(this.boxes[i].input, { checked: this.chosen.includes(value), title });
      Object.assign(this.boxes[i].text, { textContent: value, title });
    });
  }

  box() {
    const box = { input: make('input', '', { type: 'checkbox' }), text: make('span', '') };
    box.row = make('div', 'widget-inline-hbox widget-checkbox', {}, make('label', 'widget-label-basic', {}, box.input, box.text));
    box.input.addEventListener('change', () => {
      const others = this.chosen.filter(value => value !== box.value);
      this.onChange(this.facet.column, box.input.checked ? [...others, box.value] : others);
    });
    return box;
  }
}

export class RangeBox { // a slider for the range of one number column
  constructor(facet, catalogue, onChange) {
    Object.assign(this, { facet, catalogue });
    const name = catalogue.phrase('facet.range', { column: facet.label });
    this.readout = make('div', 'widget-html-content');
    this.inputs = [0, 1].map(() => make('input', '', { type: 'range', title: name, ariaLabel: name, step: 1 }));
    this.track = make('div', 'cf-track', {}, make('div', 'cf-between'), ...this.inputs);
    this.el = make('div', 'widget-box widget-vbox cf-facet', {},
      make('div', 'widget-html', {}, make('b', '', { textContent: facet.label })),
      make('div', 'widget-html cf-range', {}, this.readout),
      make('div', 'widget-inline-hbox widget-slider widget-hslider', {}, this.track));
    this.inputs.forEach((input, i) => input.addEventListener('input', () => {
      const places = this.inputs.map(each => Number(each.value));
      places[i] = i ? Math.max(...places) : Math.min(...places); // handles do not pass each other
      const [low, high] = places;
      const ends = [low === Number(input.min) ? null : facet.steps[low], high === Number(input.max) ? null : facet.steps[high]];
      onChange(facet.column, ends.every(end => end === null) ? null : ends);
    }));
  }

  update(where) { // the slider ends at the limits that the other filters leave, and at the chosen ones
    const { steps, texts } = this.facet;
    const limits = this.catalogue.limits(this.facet, where);
    const chosen = where[this.facet.column] ?? [null, null];
    const place = number => steps.reduce((best, step, i) => (Math.abs(step - number) < Math.abs(steps[best] - number) ? i : best), 0);
    const [first, last] = chosen.map((end, i) => place(end ?? limits[i]));
    const [low, high] = [Math.min(place(limits[0]), first), Math.max(place(limits[1]), last)];
    this.inputs.forEach((input, i) => Object.assign(input, { min: low, max: high, disabled: low === high, value: i ? last : first }));
    this.track.style.setProperty('--from', (first - low) / Math.max(high - low, 1));
    this.track.style.setProperty('--to', (last - low) / Math.max(high - low, 1));
    this.readout.textContent = [...new Set([texts[first], texts[last]])].join(' – ');
  }
}
