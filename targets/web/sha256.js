// crypto.subtle is there in secure contexts only; over plain http from another device the sum is made here (FIPS 180-4).

function primes(count) {
  const found = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
}

const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
const K = Uint32Array.from(primes(64), (p) => fraction(Math.cbrt(p)));
const START = Uint32Array.from(primes(8), (p) => fraction(Math.sqrt(p)));
const rotate = (x, n) => (x >>> n) | (x << (32 - n));

function mix(state, w) {
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    if (i > 15) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const [s0, s1] = [rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3), rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10)];
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    const t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i];
    const t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [a, b, c, d, e, f, g, h] = [(t1 + t2) | 0, a, b, c, (d + t1) | 0, e, f, g];
  }
  [a, b, c, d, e, f, g, h].forEach((x, i) => (state[i] += x));
}

export function plain(buffer) {
  const length = buffer.byteLength;
  const padded = new Uint8Array((((length + 8) >> 6) + 1) << 6);
  padded.set(new Uint8Array(buffer));
  padded[length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(length / 2 ** 29));
  view.setUint32(padded.length - 4, (length * 8) >>> 0);
  const [state, w] = [START.slice(), new Uint32Array(64)];
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(block + 4 * i);
    mix(state, w);
  }
  return hex(state, 8);
}

const hex = (numbers, digits) => Array.from(numbers, (x) => x.toString(16).padStart(digits, "0")).join("");

export async function digest(buffer) {
  if (!globalThis.crypto?.subtle) return plain(buffer);
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", buffer)), 2);
}
