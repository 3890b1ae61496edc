// The products of tower.js with the vector unit, which adds 8 of them per instruction: the same integers, several times faster.
//
// The program is WebAssembly, written as bytes: a loop over the rows of the weights, in it one over the rows of the
// integers, and in it one over 16 columns at a time. It needs no other file and no compiler but that of the browser.
// https://webassembly.github.io/spec/core/binary/instructions.html

// Locals: 0 integers, 1 rows, 2 weights, 3 count, 4 columns, 5 products; 6 j, 7 row, 8 and 9 pointers, 10 end, 11 sum, 12 weights
const get = i => [0x20, i];
const set = i => [0x21, i];
const number = i => [0x41, i];
const [ADD, MULTIPLY, LESS, SHIFT] = [[0x6a], [0x6c], [0x49], [0x74]]; // of 32-bit integers
const vector = code => [0xfd, ...(code < 128 ? [code] : [code | 0x80, 1])].map(byte => byte & 0xff);
const [LOAD, SPLAT, LOW, HIGH, VECTOR_ADD, DOT] = [0x00, 0x11, 0x87, 0x88, 0xae, 0xba].map(vector);
const increase = (local, ...by) => [...get(local), ...by.flat(), ...ADD, ...set(local)];
const loop = (...body) => [0x03, 0x40, ...body.flat(), 0x0d, 0, 0x0b]; // repeated while the last value is true
const half = (extend, offset) => [...get(12), ...extend, ...get(9), ...LOAD, 4, offset, ...DOT, ...get(11), ...VECTOR_ADD, ...set(11)];
const lane = i => [...get(11), ...vector(0x1b), i];

const BODY = [
  number(0), set(6),
  loop(
    number(0), set(7), get(0), set(9),
    loop(
      number(0), SPLAT, set(11),
      get(2), set(8), get(2), get(4), ADD, set(10),
      loop(
        get(8), LOAD, 4, 0, set(12),
        half(LOW, 0), half(HIGH, 16),
        increase(8, number(16)), increase(9, number(32)),
        get(8), get(10), LESS),
      get(5), get(7), get(3), MULTIPLY, get(6), ADD, number(2), SHIFT, ADD, // &products[row * count + j]
      lane(0), lane(1), ADD, lane(2), ADD, lane(3), ADD, 0x36, 2, 0,
      increase(7, number(1)), get(7), get(1), LESS),
    increase(2, get(4)), increase(6, number(1)), get(6), get(3), LESS),
].flat(Infinity);

const leb = n => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >> 7)]);
const sized = bytes => [...leb(bytes.length), ...bytes];
const section = (id, bytes) => [id, ...sized(bytes)];
const INTEGER = 0x7f;
const MODULE = new Uint8Array([
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
  ...section(1, [1, 0x60, 6, ...Array(6).fill(INTEGER), 0]), // one type: six integers, no result
  ...section(2, [1, 1, 0x65, 1, 0x6d, 2, 0, 1]), // imports the memory e.m
  ...section(3, [1, 0]),
  ...section(7, [1, 1, 0x66, 0, 0]), // exports the function f
  ...section(10, [1, ...sized([2, 5, INTEGER, 2, 0x7b, ...BODY, 0x0b])]),
]);


// Matrices in the memory of the program

const PAGE = 65536;
const STEP = 16; // columns at a time
const ROWS = 128; // at most, of the integers
const rounded = bytes => Math.ceil(bytes / STEP) * STEP;

// Moves matrices of 8 bits, with their shape, into one memory. Returns a function that multiplies with them.
export function accelerate(matrices) {
  const fitting = matrices.filter(({ shape: [, columns] }) => columns % STEP === 0);
  const most = i => Math.max(0, ...fitting.map(({ shape }) => shape[i]));
  const [inner, outer] = [rounded(2 * ROWS * most(1)), rounded(4 * Math.max(most(0), ROWS * most(1) * 4))];
  const total = fitting.reduce((sum, matrix) => sum + rounded(matrix.length), inner + outer);
  const memory = new WebAssembly.Memory({ initial: Math.ceil(total / PAGE) });
  const { exports: { f } } = new WebAssembly.Instance(new WebAssembly.Module(MODULE), { e: { m: memory } });
  const places = new Map();
  let place = inner + outer;
  for (const matrix of fitting) {
    new Int8Array(memory.buffer, place, matrix.length).set(matrix);
    places.set(matrix, place);
    place += rounded(matrix.length);
  }
  return (integers, rows, weights, count, columns) => {
    if (!places.has(weights) || 4 * rows * count > outer || rows > ROWS) return null;
    new Int16Array(memory.buffer, 0, integers.length).set(integers);
    f(0, rows, places.get(weights), count, columns, inner);
    return new Int32Array(memory.buffer, inner, rows * count).slice();
  };
}
