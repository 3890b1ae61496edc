// A search page without a server: the text tower, the embeddings and the products are files beside it.

import pane from './pane.js';
import { TextTower } from './tower.js';
import { Catalogue } from './web_search.js';
import { FacetBox, RangeBox, make } from './web_filters.js';

const PAUSE = 80; // milliseconds after a key until the search begins
const SETTINGS = { q: 'text', not: 'without', like: 'like', sort: 'sort', show: 'count', words: 'words' }; // by name in the address
const EMPTY = { text: '', without: '', like: '', sort: 'best', count: '24', words: '1', where: {} };


// HTML: everything that is inserted is escaped, unless it is HTML itself

class Html {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
}
const CODES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
const escaped = value => {
  if (value instanceof Html) return value.text;
  return Array.isArray(value) ? value.map(escaped).join('') : String(value).replace(/[&<>"']/g, sign => CODES[sign]);
};
const html = (parts, ...values) => new Html(parts.reduce((text, part, i) => text + escaped(values[i - 1]) + part));


// Files

export async function load(file, onProgress = () => {}) {
  const response = await fetch(file).catch(() => ({ ok: false, status: 0 }));
  if (!response.ok) throw new Error(document.getElementById('cf-start').dataset.missing.replace('{file}', file));
  const [chunks, total] = [[], Number(response.headers.get('Content-Length'))];
  let size = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
    if (total) onProgress(Math.min(size / total, 1));
  }
  return new Blob(chunks).arrayBuffer();
}

function unpack(buffer) { // as a response; servers and browsers may have decompressed it already
  const [first, second] = new Uint8Array(buffer, 0, 2);
  const isPacked = first === 0x1f && second === 0x8b;
  return new Response(isPacked ? new Blob([buffer]).stream().pipeThrough(new DecompressionStream('gzip')) : buffer);
}


// The page

let catalogue = null;
let tower = null;
let query = { ...EMPTY };
let shown = []; // products of the last answer
const phrase = (key, values) => catalogue.phrase(key, values);
const page = document.querySelector('.cf-page');
const controls = {};
for (const name of ['text', 'without', 'sort', 'count']) controls[name] = page.querySelector(`[data-setting=${name}]`);
const words = page.querySelector('.cf-words');
const panel = page.querySelector('.cf-filters');
const boxes = [];

const listeners = {};
const state = { html: '', status: '', max_upload: 0, texts: {} };
const model = { // what the pane expects of a widget
  get: name => state[name],
  on: (event, listener) => { listeners[event] = listener; },
  send: ({ action, value }) => queueMicrotask(() => act(action, value)),
};
const tell = message => listeners['msg:custom'](message, []);
function show(status, body) {
  Object.assign(state, { status, html: String(body) });
  listeners['change:status']();
  listeners['change:html']();
}

const imageTag = (row, alt) => (catalogue.missing.includes(row)
  ? html`<span class="cf-broken" role="img" aria-label="${phrase('card.broken.name', { name: alt })}">${phrase('card.broken')}</span>`
  : html`<img src="images/${Math.floor(row / catalogue.folder)}/${row}.webp" alt="${alt}" loading="lazy">`);
const chip = ({ label, action, value = '', row = null, removable = false }) => html`
  <button type="button" class="cf-chip" data-action="${action}" data-value="${value}"
    ${removable ? html`aria-label="${phrase('chip.remove', { label })}"` : ''}>${row === null ? '' : imageTag(row, '')}
    <span>${label}</span>${removable ? html`<b aria-hidden="true">×</b>` : ''}</button>`;
const chips = (list, text = '') => html`<div class="cf-chips cf-examples">${text && html`<span class="cf-soft">${text}</span>`}${list.map(chip)}</div>`;
const message = (title, text, list) => html`<div class="cf-message"><h2>${title}</h2><p>${text}</p><div class="cf-chips">${list.map(chip)}</div></div>`;
const examples = () => catalogue.examples.map(text => ({ label: text, action: 'query', value: text }));

function card({ product, row, cosine, match }, best) {
  const { names, kinds, prices, stocks, soldOut } = catalogue.products;
  const [name, kind, price, stock] = [names[product], kinds[product], prices?.[product] ?? '', stocks?.[product] ?? ''];
  const [opens, like] = [phrase('card.details', { name }), phrase('card.like.name', { name })];
  const percent = Math.round(100 * (match ?? Math.max(cosine, 0) / Math.max(best, 1e-9)));
  const stockClass = soldOut?.[product] ? 'cf-stock cf-sold-out' : 'cf-stock';
  return html`<article class="cf-card">
    <div class="cf-frame"><button type="button" class="cf-open" data-action="open" data-value="${row}" aria-label="${opens}" title="${opens}">${imageTag(row, name)}</button></div>
    <div class="cf-name" title="${name}">${name}</div><div class="cf-soft" title="${kind}">${kind}</div>
    ${price || stock ? html`<div class="cf-offer">${price && html`<b class="cf-price">${price}</b>`}${stock && html`<span class="${stockClass}">${stock}</span>`}</div>` : ''}
    ${cosine === null ? '' : html`<div class="cf-score" title="${phrase('card.score.hint')}"><span class="cf-bar"><i data-percent="${percent}"></i></span><b>${score(cosine, 1)}</b></div>`}
    <button type="button" class="cf-like" data-action="like" data-value="${row}" aria-label="${like}" title="${like}">${phrase('card.like')}</button>
  </article>`;
}
const score = (cosine, digits) => (100 * cosine).toLocaleString(catalogue.language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const labelOf = column => catalogue.facets.find(facet => facet.column === column)?.label ?? column;

function restrictions() { // the parts of the query as chips
  const found = [];
  if (query.like) {
    const name = catalogue.products.names[catalogue.owner(Number(query.like))];
    found.push({ label: phrase('chip.like', { name }), action: 'remove', value: 'like', row: Number(query.like), removable: true });
  }
  for (const facet of catalogue.facets) {
    const wanted = query.where[facet.column];
    if (wanted) found.push({ label: `${facet.label}: ${facet.numbers ? range(facet, wanted) : wanted.join(', ')}`, action: 'remove', value: facet.column, removable: true });
  }
  if (query.without && query.text) found.push({ label: phrase('chip.without', { text: query.without }), action: 'remove', value: 'without', removable: true });
  return found.length ? chips([...found, { label: phrase('chip.clear'), action: 'clear' }]) : '';
}

function range(facet, [low, high]) {
  const text = number => (number === null ? '' : facet.texts[facet.steps.indexOf(number)] ?? String(number));
  return phrase(low === null ? 'range.to' : high === null ? 'range.from' : 'range.both', { low: text(low), high: text(high) });
}

function noResults() { // which filter to remove
  const left = Object.keys(query.where).map(column => [column, catalogue.mask(query.where, column).reduce((sum, one) => sum + one, 0)]);
  const list = left.filter(([, n]) => n).sort((a, b) => b[1] - a[1])
    .map(([column, n]) => ({ label: phrase('none.without', { column: labelOf(column), n }), action: 'remove', value: column }));
  const text = phrase(list.length ? 'none.one' : 'none.several');
  return message(phrase('none.filters'), text, [...list, { label: phrase('none.remove'), action: 'remove_filters' }]);
}

export function find(wanted) { // products for a query
  const { text, where } = wanted;
  const count = Number(wanted.count);
  if (!text && wanted.like === '') return catalogue.browse(count, where);
  const [given, unwanted] = [text, wanted.without].map(each => (each ? tower.embed(each) : null));
  const like = wanted.like === '' ? null : Number(wanted.like);
  return catalogue.search({ wanted: given, unwanted, like, text, words: wanted.words === '1', count, where });
}

function draw() {
  const isEmpty = !query.text && query.like === '';
  for (const box of boxes) box.update(query.where);
  const number = Object.keys(query.where).length;
  page.querySelector('.cf-toggle-filters').textContent = number ? phrase('filters.count', { n: number }) : phrase('filters');
  if (!tower && !isEmpty) return show(phrase('loading'), restrictions());
  try {
    shown = catalogue.sorted(find(query), query.sort);
  } catch (error) {
    return show('', message(phrase('error.wrong'), error.message, [{ label: phrase('chip.start'), action: 'clear' }]));
  }
  if (!shown.length) return show('', html`${restrictions()}${noResults()}`);
  const total = catalogue.mask(query.where).reduce((sum, one) => sum + one, 0);
  const best = Math.max(...shown.map(each => each.cosine));
  const cards = html`<div class="cf-grid" data-query="${query.text}">${shown.map(each => card(each, best))}</div>`;
  const better = query.text && catalogue.suggest(query.text);
  const spelling = better ? chips([{ label: better, action: 'query', value: better }], phrase('suggest')) : '';
  const first = isEmpty ? chips(examples(), phrase('try')) : spelling;
  const note = isEmpty && query.without ? ` · ${phrase('status.without')}` : '';
  const key = isEmpty ? 'status.all' : catalogue.scale?.fails(shown) ? 'match.none' : query.text && query.words === '1' ? 'status.words' : 'status.found';
  show(phrase(key, { n: shown.length, total }) + note, html`${restrictions()}${first}${cards}`);
  for (const bar of page.querySelectorAll('.cf-bar i')) bar.style.width = `${bar.dataset.percent}%`; // no styles in HTML
}

async function open(row) { // the details of a product
  const product = catalogue.owner(row);
  const name = catalogue.products.names[product];
  const block = await unpack(await load(`about/${Math.floor(product / catalogue.block)}.json.gz`)).json();
  const [facts, text] = block[product % catalogue.block];
  const found = shown.find(each => each.product === product);
  if (found && found.cosine !== null) facts.unshift([phrase('score'), score(found.cosine, 2)]);
  const views = catalogue.owners ? catalogue.owners.flatMap((owner, each) => (owner === product ? [each] : [])) : [row];
  const view = (each, i) => {
    const label = phrase('details.view', { i: i + 1, n: views.length });
    return html`<button type="button" class="cf-open" data-action="open" data-value="${each}" ${each === row ? html`aria-current="true"` : ''} title="${label}" aria-label="${label}">${imageTag(each, '')}</button>`;
  };
  tell({ details: String(html`
    <button type="button" class="cf-close" data-action="close" aria-label="${phrase('close')}" title="${phrase('close')}">×</button>
    <div class="cf-sheet">
      <div class="cf-large">${imageTag(row, name)}${views.length > 1 ? html`<div class="cf-views" role="group" aria-label="${phrase('details.views', { name })}">${views.map(view)}</div>` : ''}</div>
      <div class="cf-about"><h2>${name}</h2><dl>${facts.map(([label, value]) => html`<dt>${label}</dt><dd>${value}</dd>`)}</dl><p>${text}</p></div>
    </div>
    <div class="cf-actions">
      <button type="button" class="cf-button cf-primary" data-action="like" data-value="${row}">${phrase('card.like')}</button>
      <button type="button" class="cf-button" data-action="close">${phrase('close')}</button>
    </div>`) });
}


// Actions, and the address

function toAddress() {
  const values = new URLSearchParams();
  for (const [name, setting] of Object.entries(SETTINGS)) if (query[setting] !== EMPTY[setting]) values.set(name, query[setting]);
  for (const [column, wanted] of Object.entries(query.where)) {
    const facet = catalogue.facets.find(each => each.column === column);
    for (const value of facet.numbers ? [wanted.map(end => end ?? '').join('..')] : wanted) values.append(`filter.${column}`, value);
  }
  return String(values);
}

function fromAddress(address) { // what does not fit the catalogue is ignored
  const values = new URLSearchParams(address);
  const found = { ...EMPTY, where: {} };
  for (const [name, setting] of Object.entries(SETTINGS)) if (values.has(name)) found[setting] = values.get(name).slice(0, 500);
  if (!/^\d+$/.test(found.like) || Number(found.like) >= catalogue.imageCount) found.like = '';
  for (const name of ['sort', 'count']) if (![...controls[name].options].some(option => option.value === found[name])) found[name] = EMPTY[name];
  for (const facet of catalogue.facets) {
    const wanted = values.getAll(`filter.${facet.column}`);
    const ends = wanted[0]?.split('..').map(end => (end === '' || Number.isNaN(Number(end)) ? null : Number(end)));
    if (facet.numbers && ends?.length === 2 && ends.some(end => end !== null)) found.where[facet.column] = ends;
    const known = facet.numbers ? [] : wanted.filter(value => facet.values.includes(value));
    if (known.length) found.where[facet.column] = known;
  }
  return found;
}

function change(parts, { isTyping = false, keepsAddress = false } = {}) {
  query = { ...query, ...parts };
  for (const [name, control] of Object.entries(controls)) if (control.value.trim() !== query[name]) control.value = query[name];
  words.classList.toggle('mod-active', query.words === '1');
  words.ariaPressed = query.words === '1';
  draw();
  if (!keepsAddress) tell({ address: toAddress(), replace: isTyping });
}

function act(action, value) {
  if (action === 'ping') tell({ pong: true });
  if (action === 'open') open(Number(value)).catch(error => tell({ details: String(html`<button type="button" class="cf-close" data-action="close" aria-label="${phrase('close')}">×</button><div class="cf-sheet">${error.message}</div>`) }));
  if (action === 'like') change({ text: '', like: value, sort: 'best' });
  if (action === 'query') change({ text: value, like: '', sort: 'best' });
  if (action === 'remove') change(value in EMPTY ? { [value]: EMPTY[value] } : { where: without(value) });
  if (action === 'remove_filters') change({ where: {} });
  if (action === 'clear') change({ ...EMPTY, count: query.count, words: query.words });
  if (action === 'address') change(fromAddress(value), { keepsAddress: true });
}
const without = column => Object.fromEntries(Object.entries(query.where).filter(([name]) => name !== column));

function filter(column, wanted) {
  change({ where: wanted?.length ? { ...without(column), [column]: wanted } : without(column) });
}

function connect() {
  let timer = null;
  const typed = name => {
    clearTimeout(timer);
    const text = controls[name].value.trim().slice(0, 500);
    if (text !== query[name]) change(name === 'text' && text ? { text, like: '' } : { [name]: text }, { isTyping: true });
  };
  for (const name of ['text', 'without']) {
    controls[name].addEventListener('input', () => { clearTimeout(timer); timer = setTimeout(typed, PAUSE, name); });
    controls[name].addEventListener('keydown', event => { if (event.key === 'Enter') typed(name); });
  }
  for (const name of ['sort', 'count']) controls[name].addEventListener('change', () => change({ [name]: controls[name].value }));
  words.addEventListener('click', () => change({ words: query.words === '1' ? '0' : '1' }));
  page.addEventListener('error', event => { // an image that cannot be loaded
    if (event.target.tagName === 'IMG') event.target.replaceWith(make('span', 'cf-broken', { textContent: phrase('card.broken') }));
  }, true);
}

async function start() {
  const files = ['embeddings.safetensors', 'text_tower.safetensors'];
  const shares = files.map(() => 0);
  const onProgress = (i, share) => {
    shares[i] = share;
    if (catalogue && query.text && !tower) show(`${phrase('loading')} ${Math.round(100 * Math.min(...shares))} %`, restrictions());
  };
  const loading = files.map((file, i) => load(file, share => onProgress(i, share)));
  loading.forEach(each => each.catch(() => {})); // reported below
  catalogue = new Catalogue(await unpack(await load('catalogue.json.gz')).json());
  const match = catalogue.hasScale ? load('match.safetensors.gz').then(buffer => unpack(buffer).arrayBuffer()) : null;
  match?.catch(() => {}); // reported below
  Object.assign(state.texts, { busy: phrase('busy'), details: phrase('details'), language: catalogue.language });
  pane.render({ model, el: page.querySelector('#results') });
  const texts = catalogue.facets.filter(facet => !facet.numbers); // the first two are open
  for (const facet of catalogue.facets) {
    boxes.push(facet.numbers ? new RangeBox(facet, catalogue, filter) : new FacetBox(facet, catalogue, filter, texts.indexOf(facet) < 2));
  }
  panel.append(...boxes.map(box => box.el));
  connect();
  document.getElementById('cf-start').hidden = true;
  page.hidden = false;
  change(fromAddress(location.search), { keepsAddress: true });
  const [embeddings, weights] = await Promise.all(loading);
  catalogue.setEmbeddings(embeddings, await match);
  tower = new TextTower(weights);
  if (query.text || query.like) draw();
  return { catalogue, tower };
}

export const ready = start();
