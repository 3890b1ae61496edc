// The products of a page without a server: filters, ranking, and texts.

import { linear, readTensors, speedUp, valueAt } from './tower.js';
import { MatchScale, Spelling } from './web_match.js';

const SAMPLE = 2048; // products from which the spread of cosines is estimated


// Terms: the words of a text as the index of the catalogue counts them

const UNSPACED = '\u0e00-\u0eff\u3005-\u30ff\u3400-\u9fff'; // scripts without spaces: Thai, Lao, Japanese, Chinese
const MARKS = '\u0300-\u036f\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0981-\u0dff'; // accents and signs of vowels
const WORD = `(?:(?![${UNSPACED}])[\\p{L}\\p{N}]|[${MARKS}])+`;
const TOKENS = new RegExp(`[${UNSPACED}]+|${WORD}(?:[-./'’]${WORD})*`, 'gu');
const PARTS = new RegExp(`(?:[\\p{L}\\p{Nl}\\p{No}]|[${MARKS}])+|\\p{Nd}+`, 'gu');
const isUnspaced = new RegExp(`^[${UNSPACED}]`);

const foldedText = text => text.normalize('NFKC').toLowerCase().replaceAll('ß', 'ss').replaceAll('ς', 'σ');
const tokensOf = text => foldedText(text).match(TOKENS) ?? [];

function termsOf(text, stems) { // stems: the terms of words that are not their own term
  const term = word => (Object.hasOwn(stems, word) ? stems[word] : word.normalize('NFD').replace(/[\u0300-\u036f]/g, ''));
  const split = token => {
    if (isUnspaced.test(token)) return [...token].flatMap((letter, i) => [token.slice(i, i + 2), letter]);
    const named = /['’]/.test(token) ? token.split(/['’]/).filter(part => part.length > 1) : [];
    if (named.length) return named.map(term);
    const parts = token.match(PARTS) ?? [];
    return parts.length < 2 ? [term(token)] : [token.replace(/[-/]/g, ''), ...parts].map(term);
  };
  return [...new Set(tokensOf(text).flatMap(split))];
}


export class Catalogue {
  constructor(data) {
    Object.assign(this, data); // owners: the product of each image, unless each product has one image
    this.count = this.products.names.length;
    this.everything = new Uint8Array(this.count).fill(1);
    this.plurals = new Intl.PluralRules(this.language);
    this.rows = new Int32Array(this.count); // the main image of each product, which is the first
    for (let row = this.imageCount - 1; row >= 0; row--) this.rows[this.owner(row)] = row;
    this.sample = this.rows.filter((_, product) => product % Math.ceil(this.count / SAMPLE) === 0);
  }

  setEmbeddings(buffer, match = null) { // match: of a catalogue with a scale
    const { tensors } = readTensors(buffer);
    speedUp({ vectors: tensors.vectors });
    Object.assign(this, tensors); // vectors, scales; and starts, owned and bm25: the products of each term and their scores
    this.terms = new Map(this.words.terms.map((term, i) => [term, i]));
    this.spelling = new Spelling(this.words, word => termsOf(word, this.words.stems).some(term => this.terms.has(term)));
    this.scale = match && new MatchScale(match, this.words.stems);
  }

  owner(row) {
    return this.owners ? this.owners[row] : row;
  }

  phrase(key, values = {}) { // a text in the language of the page
    const text = this.phrases[key];
    const form = typeof text === 'string' ? text : text[this.plurals.select(values.n)] ?? text.other;
    return form.replace(/\{(\w+)\}/g, (_, name) => {
      const value = values[name];
      return typeof value === 'number' ? value.toLocaleString(this.language) : value;
    });
  }


  // Filters: by column, a list of values or a pair of the least and the greatest number, null if open

  mask(where, skip = '') { // 1 for each product that passes the filters
    const mask = this.everything.slice();
    for (const facet of this.facets) {
      const wanted = where[facet.column];
      if (!wanted || facet.column === skip) continue;
      if (facet.numbers) {
        const [low, high] = [wanted[0] ?? -Infinity, wanted[1] ?? Infinity];
        facet.numbers.forEach((number, i) => { if (number === null || number < low || number > high) mask[i] = 0; });
      } else {
        const codes = new Set(wanted.map(value => facet.values.indexOf(value)));
        facet.codes.forEach((code, i) => {
          if (!(Array.isArray(code) ? code.some(each => codes.has(each)) : codes.has(code))) mask[i] = 0;
        });
      }
    }
    return mask;
  }

  counts(facet, where) { // pairs of value and number of products, greatest first
    const mask = this.mask(where, facet.column);
    const counts = new Uint32Array(facet.values.length);
    facet.codes.forEach((code, i) => {
      if (mask[i]) for (const each of Array.isArray(code) ? code : [code]) counts[each]++;
    });
    const pairs = facet.values.map((value, i) => [value, counts[i]]);
    return pairs.filter(([value]) => value.trim()).sort((a, b) => b[1] - a[1]);
  }

  limits(facet, where) { // the least and the greatest number that the filters of the other columns leave
    const mask = this.mask(where, facet.column);
    let [low, high] = [Infinity, -Infinity];
    facet.numbers.forEach((number, i) => {
      if (mask[i] && number !== null) [low, high] = [Math.min(low, number), Math.max(high, number)];
    });
    return low <= high ? [low, high] : [facet.steps[0], facet.steps.at(-1)];
  }


  // Ranking

  cosines(vector) { // of all images
    return linear(vector, this.vectors, this.scales);
  }

  vector(row) {
    const size = this.vectors.shape[1];
    return Float32Array.from({ length: size }, (_, i) => valueAt(this.vectors, row * size + i) * this.scales[row]);
  }

  spread(cosines) { // standard deviation over the catalogue
    let mean = 0;
    let square = 0;
    for (const row of this.sample) mean += cosines[row] / this.sample.length;
    for (const row of this.sample) square += (cosines[row] - mean) ** 2 / this.sample.length;
    return Math.max(Math.sqrt(square), 1e-6);
  }

  combine(wanted, unwanted) { // a vector of length 1 that is like one vector and unlike another
    const parts = [[wanted, 1], [unwanted, -this.withoutWeight]].map(([vector, weight]) => [vector, weight / this.spread(this.cosines(vector))]);
    const sum = wanted.map((_, i) => parts.reduce((total, [vector, weight]) => total + weight * vector[i], 0));
    const length = Math.max(Math.hypot(...sum), 1e-9);
    return sum.map(value => value / length);
  }

  wordScores(text) { // of each product, from 0 to 1
    const scores = new Float32Array(this.count);
    const terms = termsOf(text, this.words.stems);
    const telling = terms.filter(term => !this.words.stopwords.includes(term));
    for (const term of telling.length ? telling : terms) {
      const number = this.terms.get(term) ?? this.starts.length; // a word that no product has is ignored
      for (let i = this.starts[number]; i < this.starts[number + 1]; i++) scores[this.owned[i]] += this.bm25[i];
    }
    const best = scores.reduce((most, score) => Math.max(most, score), 1e-9);
    return scores.map(score => score / best);
  }

  suggest(text) { // another spelling of a query; empty if there is none
    return this.spelling.suggest(foldedText(text), tokensOf(text));
  }

  // wanted and unwanted are vectors of texts, either may be null; like is a row, and text the words to rank by
  search({ wanted, unwanted, like = null, text, words, count, where }) {
    const [image, without] = like === null ? [null, null] : [this.vector(like), this.owner(like)];
    const vector = unwanted ? this.combine(wanted ?? image, unwanted) : wanted ?? image;
    const cosines = this.cosines(vector);
    const found = this.nearest(cosines, { count, where, without, text: words ? text : '' });
    if (!this.scale) return found;
    const top = (each, number, conditions = {}) => this.nearest(each, { count: number, ...conditions });
    if (wanted) return this.scale.judged(text, this.scale.ofText(this.scale.queryWords(text), vector, found, top(cosines, this.scale.top, { where })), found);
    const near = unwanted ? this.cosines(image) : cosines;
    const nearest = top(near, this.scale.top, { where, without });
    const dense = nearest.slice(0, this.scale.neighbours).map(({ row }) => top(this.cosines(this.vector(row)), this.scale.neighbours + 1).slice(1))
      .map(around => around.reduce((total, each) => total + each.cosine / around.length, 0));
    return this.scale.judged('', this.scale.ofImage(dense, found.map(each => ({ ...each, cosine: near[each.row] })), nearest), found);
  }

  nearest(cosines, { count, where = {}, without = null, text = '' }) { // product, row of its best image, and cosine; best first
    const mask = this.mask(where);
    const weight = text && this.words.weight * this.spread(cosines);
    const bonus = text ? this.wordScores(text).map(score => score * weight) : new Float32Array(this.count);
    const best = new Int32Array(this.count).fill(-1);
    for (let row = 0; row < cosines.length; row++) {
      const product = this.owner(row);
      if (mask[product] && product !== without && (best[product] < 0 || cosines[row] > cosines[best[product]])) best[product] = row;
    }
    const found = [];
    for (let product = 0; product < this.count; product++) {
      const row = best[product];
      const score = cosines[row] + bonus[product];
      if (row < 0 || (found.length === count && score <= found.at(-1).score)) continue;
      let place = found.length;
      while (place && (found[place - 1].score < score || (found[place - 1].score === score && found[place - 1].row > row))) place--;
      found.splice(place, 0, { product, row, cosine: cosines[row], score });
      if (found.length > count) found.pop();
    }
    return found;
  }

  browse(count, where) { // products that pass the filters, alternating between categories
    const mask = this.mask(where);
    const seen = new Map();
    const turns = [];
    for (let product = 0; product < this.count; product++) {
      if (!mask[product]) continue;
      const turn = seen.get(this.products.turns[product]) ?? 0;
      seen.set(this.products.turns[product], turn + 1);
      turns.push([turn, product]);
    }
    turns.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    return turns.slice(0, count).map(([, product]) => ({ product, row: this.rows[product], cosine: null }));
  }

  sorted(found, order) { // best, name, or a column of numbers followed by up or down
    const direction = order.endsWith(' down') ? -1 : 1;
    const column = this.facets.find(facet => facet.numbers && order === `${facet.column} ${direction < 0 ? 'down' : 'up'}`);
    if (order === 'name') {
      const name = ({ product }) => this.products.names[product].toLowerCase();
      return found.sort((a, b) => (name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : 0));
    }
    if (!column) return found;
    const number = ({ product }) => column.numbers[product] ?? Infinity * direction;
    return found.sort((a, b) => direction * (number(a) - number(b)) || 0);
  }
}
