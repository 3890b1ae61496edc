// The text tower of CLIP: from a text to its embedding, with weights of 8 or 16 bits.
//
// Reads the file that clip_ft_export --web writes. All products of matrices are sums of integers, so that every
// browser gets the same digits.

import { accelerate } from './web_kernel.js';


// A file in the format of safetensors: typed arrays by name, and the metadata

const TYPES = { F32: Float32Array, I32: Int32Array, I16: Int16Array, I8: Int8Array };

export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    const Type = TYPES[dtype];
    const values = new Type(buffer, 8 + length + start, (end - start) / Type.BYTES_PER_ELEMENT);
    tensors[name] = Object.assign(dtype === 'I16' ? divided(values, shape) : values, { shape });
  }
  return { tensors, metadata };
}

function divided(values, shape) { // 16 bits as 256 times 8 bits plus 8 bits
  const high = Int8Array.from(values, value => (value + 128) >> 8);
  const low = Int8Array.from(values, (value, i) => value - 256 * high[i]);
  return Object.assign(high, { low: Object.assign(low, { shape }) });
}

export const valueAt = (matrix, i) => (matrix.low ? 256 * matrix[i] + matrix.low[i] : matrix[i]);


// Products of matrices

const MOST_INTEGER = 2 ** 31 - 1;

// Rows as integers: as large as sums of their products with 8 bits, over all columns, allow. Returns one scale per row.
function toIntegers(rows, columns, integers) {
  const most = Math.min(32767, Math.floor(MOST_INTEGER / (128 * columns)));
  const scales = new Float64Array(rows.length / columns);
  for (let row = 0; row < scales.length; row++) {
    let largest = 1e-30;
    for (let i = row * columns; i < (row + 1) * columns; i++) largest = Math.max(largest, Math.abs(rows[i]));
    scales[row] = largest / most;
    for (let i = row * columns; i < (row + 1) * columns; i++) integers[i] = Math.round(rows[i] / scales[row]);
  }
  return scales;
}

const accelerated = [];

export function speedUp(tensors) { // where the browser has a vector unit
  const matrices = Object.entries(tensors).filter(([name, { shape }]) => shape.length === 2 && name !== 'tokens').map(([, matrix]) => matrix)
    .filter(matrix => matrix instanceof Int8Array);
  try {
    accelerated.push(accelerate(matrices.flatMap(matrix => (matrix.low ? [matrix, matrix.low] : [matrix]))));
  } catch (error) {
    console.info(`Searching without the vector unit: ${error.message}`);
  }
}

// products[i * count + j] = integers of row i times weights of row j
function multiply(integers, rows, weights, count, columns) {
  for (const fast of accelerated) {
    const products = fast(integers, rows, weights, count, columns);
    if (products) return products;
  }
  const products = new Int32Array(rows * count);
  for (let row = 0; row < rows; row++) {
    for (let j = 0; j < count; j++) {
      let sum = 0;
      const start = row * columns - j * columns;
      for (let i = j * columns; i < (j + 1) * columns; i++) sum += integers[start + i] * weights[i];
      products[row * count + j] = sum;
    }
  }
  return products;
}

// The products of rows of floats with the rows of a matrix of integers, which have a scale each
export function linear(rows, weights, scales, bias = null) {
  const [count, columns] = weights.shape;
  const number = rows.length / columns;
  const integers = new Int16Array(rows.length);
  const rowScales = toIntegers(rows, columns, integers);
  const high = multiply(integers, number, weights, count, columns);
  const low = weights.low && multiply(integers, number, weights.low, count, columns);
  const out = new Float32Array(high.length);
  for (let row = 0; row < number; row++) {
    for (let j = 0; j < count; j++) {
      const i = row * count + j;
      const product = low ? 256 * high[i] + low[i] : high[i];
      out[i] = product * rowScales[row] * scales[j] + (bias ? bias[j] : 0);
    }
  }
  return out;
}


// Tokens: byte-level byte pair encoding

const SPACES = /[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/g; // JavaScript's \s differs a little
const PIECES = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^ \p{L}\p{N}]+/gu;
const SPECIAL = /(<\|startoftext\|>|<\|endoftext\|>)/;

export class Tokenizer {
  constructor({ letters, merges }, { start, end, unknown, length }) {
    Object.assign(this, { letters, start, end, unknown, length });
    this.merges = new Map(); // rank and new token, by a pair of tokens
    for (let i = 0; i < merges.length; i += 3) this.merges.set(merges[i] * 2 ** 26 + merges[i + 1], [i, merges[i + 2]]);
  }

  tokens(text) { // numbers, with those of the start and the end
    const found = [];
    for (const part of text.split(SPECIAL)) {
      if (SPECIAL.test(part)) {
        found.push(part === '<|startoftext|>' ? this.start : this.end);
        continue;
      }
      const lower = Array.from(part.normalize('NFC').replace(SPACES, ' '), letter => letter.toLowerCase()).join('');
      for (const [piece] of lower.matchAll(PIECES)) found.push(...this.word(new TextEncoder().encode(piece)));
    }
    return [this.start, ...found.slice(0, this.length - 2), this.end];
  }

  word(bytes) { // joins the pair of the lowest rank until no pair is known
    const word = Array.from(bytes, (byte, i) => this.letters[byte + 256 * (i === bytes.length - 1)]);
    for (;;) {
      let best = null;
      let place = 0;
      for (let i = 0; i + 1 < word.length; i++) {
        const merge = this.merges.get(word[i] * 2 ** 26 + word[i + 1]);
        if (merge && (!best || merge[0] < best[0])) [best, place] = [merge, i];
      }
      if (!best) return word.map(token => (token < 0 ? this.unknown : token));
      word.splice(place, 2, best[1]);
    }
  }
}


// The transformer

const gelu = x => { // Abramowitz and Stegun, 7.1.26
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + .3275911 * z);
  const tail = t * (.254829592 + t * (-.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * Math.exp(-z * z);
  return x * (x > 0 ? 1 - tail / 2 : tail / 2);
};
const ACTIVATIONS = { quick_gelu: x => x / (1 + Math.exp(-1.702 * x)), gelu };

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

export class TextTower {
  constructor(buffer) {
    const { tensors, metadata } = readTensors(buffer);
    this.tensors = tensors;
    this.config = JSON.parse(metadata.config);
    this.tokenizer = new Tokenizer(tensors, this.config);
    this.width = tensors.positions.shape[1];
    speedUp(tensors);
  }

  embed(text) { // a vector of length 1
    const ids = this.tokenizer.tokens(text);
    ids.length = ids.indexOf(this.config.end) + 1; // no token sees those behind it
    let x = this.lookUp(ids);
    for (let layer = 0; layer < this.config.layers; layer++) {
      add(x, this.attention(layer, this.norm(`${layer}.norm1`, x)));
      const inner = this.linear(`${layer}.fc1`, this.norm(`${layer}.norm2`, x)).map(ACTIVATIONS[this.config.activation]);
      add(x, this.linear(`${layer}.fc2`, inner));
    }
    x = this.linear('projection', this.norm('norm', x.slice(-this.width)));
    const length = Math.hypot(...x);
    return x.map(value => value / length);
  }

  lookUp(ids) {
    const { tokens, 'tokens.scales': scales, positions } = this.tensors;
    const x = new Float32Array(ids.length * this.width);
    for (let i = 0; i < x.length; i++) {
      const id = ids[Math.floor(i / this.width)];
      x[i] = valueAt(tokens, id * this.width + i % this.width) * scales[id] + positions[i];
    }
    return x;
  }

  linear(name, x) {
    return linear(x, this.tensors[name], this.tensors[`${name}.scales`], this.tensors[`${name}.bias`]);
  }

  norm(name, x) {
    const [weight, bias] = [this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]];
    const out = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += this.width) {
      let mean = 0;
      let square = 0;
      for (let i = 0; i < this.width; i++) mean += x[start + i] / this.width;
      for (let i = 0; i < this.width; i++) square += (x[start + i] - mean) ** 2 / this.width;
      const scale = 1 / Math.sqrt(square + this.config.epsilon);
      for (let i = 0; i < this.width; i++) out[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
    }
    return out;
  }

  attention(layer, x) { // each token sees itself and those before it
    const { width, config: { heads } } = this;
    const size = width / heads;
    const all = this.linear(`${layer}.qkv`, x);
    const out = new Float32Array(x.length);
    const shares = new Float64Array(x.length / width);
    for (let head = 0; head < heads; head++) {
      for (let to = 0; to < shares.length; to++) {
        const query = 3 * to * width + head * size;
        let most = -Infinity;
        for (let from = 0; from <= to; from++) {
          const key = (3 * from + 1) * width + head * size;
          let sum = 0;
          for (let i = 0; i < size; i++) sum += all[query + i] * all[key + i];
          shares[from] = sum / Math.sqrt(size);
          most = Math.max(most, shares[from]);
        }
        let total = 0;
        for (let from = 0; from <= to; from++) total += shares[from] = Math.exp(shares[from] - most);
        for (let from = 0; from <= to; from++) {
          const value = (3 * from + 2) * width + head * size;
          const share = shares[from] / total;
          for (let i = 0; i < size; i++) out[to * width + head * size + i] += share * all[value + i];
        }
      }
    }
    return this.linear(`${layer}.out`, out);
  }
}
