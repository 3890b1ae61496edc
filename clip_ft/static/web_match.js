// Whether results match a query, with the scale of the catalogue (match_scale.py, match_fit.py), and other spellings.

import { readTensors } from './tower.js';

const LETTER = '[\\p{L}\\p{N}_]';
const UNSPACED = '\u0e00-\u0eff\u3005-\u30ff\u3400-\u9fff'; // as in web_search.js
const WORDS = new RegExp(`[${UNSPACED}]|(?:(?![${UNSPACED}])[\\p{L}\\p{N}])+`, 'gu');
const JOINED = new RegExp(`['’]s(?!${LETTER})|(?<=${LETTER})[-'’](?=${LETTER})`, 'gu'); // women's, t-shirt
const sum = values => values.reduce((total, value) => total + value, 0);
const own = (object, key, otherwise) => (Object.hasOwn(object, key) ? object[key] : otherwise);


export class MatchScale {
  constructor(buffer, stems) { // stems: of the terms of the catalogue
    const { tensors, metadata } = readTensors(buffer);
    Object.assign(this, tensors, JSON.parse(metadata.config));
    this.otherStems = stems;
    this.numbers = new Map(this.terms.map((term, i) => [term, i]));
    for (const [starts, products] of [[this.textStarts, this.texts], [this.wordStarts, this.words]]) {
      for (let term = 0; term < this.terms.length; term++) { // differences are stored
        for (let i = starts[term] + 1; i < starts[term + 1]; i++) products[i] += products[i - 1];
      }
    }
    this.size = this.kinds.length;
  }

  queryWords(text) {
    const folded = text.toLowerCase().replaceAll('ß', 'ss').replaceAll('ς', 'σ').replace(JOINED, '');
    const found = (folded.match(WORDS) ?? []).filter(word => !this.silent.includes(word));
    return [...new Set(found.map(word => own(this.stems, word, own(this.otherStems, word, word))))];
  }

  has(word, product, starts, products) { // whether a product has a word
    const term = this.numbers.get(word);
    if (term === undefined) return false;
    let [low, high] = [starts[term], starts[term + 1]];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (products[middle] < product) low = middle + 1;
      else high = middle;
    }
    return low < starts[term + 1] && products[low] === product;
  }

  hasWords(asked, product) { // whether its name, category and attributes have all words
    return asked.length > 0 && asked.every(word => this.has(word, product, this.wordStarts, this.words));
  }

  kindScores(vector) { // standardised cosines with the names of the categories
    const [count, size] = this.kindVectors.shape;
    const near = Array.from({ length: count }, (_, kind) => vector.reduce((total, value, i) => total + value * this.kindVectors[kind * size + i], 0));
    const mean = sum(near) / count;
    const spread = Math.max(Math.sqrt(sum(near.map(value => (value - mean) ** 2)) / count), 1e-6);
    return near.map(value => (value - mean) / spread);
  }

  agreement(product, top) { // share of the nearest products that have the category of a product
    const kind = this.kinds[product];
    return kind < 0 || !top.length ? 0 : top.filter(each => this.kinds[each.product] === kind).length / top.length;
  }

  scores(scale, features) { // from 0 to 1
    const levels = [0, this.floor, this.good, 0.9, 1];
    const knots = [scale.knots[0] - 4, ...scale.knots, scale.knots.at(-1) + 4];
    return features.map(row => {
      const odds = row.reduce((total, value, i) => total + (value - scale.mean[i]) * scale.weights[i], scale.bias);
      const place = knots.findIndex(knot => knot >= odds);
      if (place < 1) return place ? 1 : 0;
      return levels[place - 1] + (levels[place] - levels[place - 1]) * (odds - knots[place - 1]) / (knots[place] - knots[place - 1]);
    });
  }

  ofText(asked, vector, found, top) { // scores of the results and of the whole answer; null without a scale
    const scale = asked.length >= this.longQuery ? this.long : this.short;
    if (!scale) return null;
    const counts = asked.map(word => (this.numbers.has(word) ? this.textStarts[this.numbers.get(word) + 1] - this.textStarts[this.numbers.get(word)] : 0));
    const rarity = counts.map(count => Math.log((this.size + 1) / (count + 0.5)));
    const share = chosen => sum(rarity.filter((_, i) => chosen(i))) / Math.max(sum(rarity), 1e-9);
    const [near, described] = [this.kindScores(vector), share(i => counts[i] > 0)];
    const features = ({ product, cosine }) => {
      const kind = this.kinds[product];
      const named = kind < 0 ? [] : this.kindWords[kind];
      return [cosine, this.agreement(product, top), kind < 0 ? 0 : near[kind], described, Number(this.hasWords(asked, product)),
        share(i => this.has(asked[i], product, this.textStarts, this.texts)),
        named.filter(word => asked.includes(word)).length / Math.max(1, named.length)];
    };
    const [scores, best] = [found, top].map(rows => this.scores(scale, rows.map(features)));
    return { scores, answer: Math.max(0, ...scores.slice(0, this.shown), ...best.slice(0, this.shown)) };
  }

  ofImage(dense, found, top) { // dense: mean cosine of each of the nearest products with its own nearest products
    if (!this.image) return null;
    const mean = values => sum(values) / values.length;
    const near = top.slice(0, this.neighbours).map(each => each.cosine);
    const inside = near.length ? Math.log((1.001 - mean(dense)) / (1.001 - mean(near))) : 0;
    const features = ({ product, cosine }) => [cosine, this.agreement(product, top), inside];
    const [scores, best] = [found, top].map(rows => this.scores(this.image, rows.map(features)));
    return { scores, answer: Math.max(0, ...best.slice(0, this.shown)) };
  }

  judged(text, judgement, found) { // the results with their match, from 0 to 1
    if (!judgement) return found;
    const [asked, { scores, answer }] = [this.queryWords(text), judgement];
    return found.map((each, i) => {
      const match = answer < this.floor ? Math.min(scores[i], answer) : scores[i];
      return { ...each, match: this.hasWords(asked, each.product) ? Math.max(match, this.floor) : match };
    });
  }

  fails(found) { // whether no result is at least a weak match
    return found.length > 0 && found.every(({ match }) => match < this.floor);
  }
}


// Spelling: the word of the catalogue that was probably meant

const CHANGE = 4; // cost of a changed letter, in natural logarithms of the frequency of a word

function changes(first, second, most) { // letters added, removed, replaced or swapped with their neighbour; Infinity above most
  if (Math.abs(first.length - second.length) > most) return Infinity;
  let [before, last, row] = [[], [], Array.from({ length: second.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= first.length; i++) {
    [before, last, row] = [last, row, [i]];
    for (let j = 1; j <= second.length; j++) {
      const isSame = first[i - 1] === second[j - 1];
      row[j] = Math.min(row[j - 1] + 1, last[j] + 1, last[j - 1] + (isSame ? 0 : 1));
      if (i > 1 && j > 1 && first[i - 1] === second[j - 2] && first[i - 2] === second[j - 1]) row[j] = Math.min(row[j], before[j - 2] + 1);
    }
  }
  return row[second.length] > most ? Infinity : row[second.length];
}

export class Spelling {
  constructor({ counts, described, stopwords }, isTerm) { // isTerm: whether products have the term of a word
    this.counts = Object.entries(counts).filter(([word]) => /^\p{L}{3,}$/u.test(word));
    this.known = new Set([...described, ...stopwords]);
    this.isTerm = isTerm;
  }

  mostSimilar(word) {
    const [letters, most] = [[...word], [...word].length < 7 ? 1 : 2];
    let [best, highest] = ['', -CHANGE];
    for (const [choice, count] of this.counts) {
      if (choice.codePointAt(0) !== word.codePointAt(0)) continue;
      const score = Math.log(count) - CHANGE * changes(letters, [...choice], most);
      if (score > highest || (score === highest && choice > best)) [best, highest] = [choice, score];
    }
    return best;
  }

  suggest(folded, tokens) { // the query with other words; empty if there is nothing to replace
    let suggestion = folded;
    for (const word of new Set(tokens)) {
      if (!/^\p{L}{4,}$/u.test(word) || this.known.has(word) || this.isTerm(word)) continue;
      const better = this.mostSimilar(word);
      if (better) suggestion = suggestion.replace(new RegExp(`(?<!${LETTER})${word}(?!${LETTER})`, 'gu'), better);
    }
    return suggestion === folded ? '' : suggestion;
  }
}
