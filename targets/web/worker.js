// One loaded model: what ondevice/worker.py does, with the runtimes of the web. A classic worker, since LiteRT.js needs
// importScripts. A request is answered by {id, ok: true, ...} or {id, ok: false, kind, text}; long ones tell {progress}.
"use strict";

const WEB = new URL("web/", location.href).href;
const ORT = `${WEB}onnxruntime-web/dist/`;
const LITERT = `${WEB}@litertjs/core/`;
const PROGRESS_MS = 1000;
const LENGTH = "length_"; // what the name of a signature begins with; then the number of tokens it takes

let session = null;
let rows = [];

class Refused extends Error {
  constructor(kind, text) {
    super(text);
    this.kind = kind;
  }
}

async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Refused("runtime", `${url}: ${response.status}`);
  return response.arrayBuffer();
}

async function whole({ url, sha256, name }) {
  const content = await bytes(url);
  const { digest } = await import("./sha256.js");
  const found = await digest(content);
  if (found !== sha256) throw new Refused("integrity", `${name}: expected sha256 ${sha256}, got ${found}`);
  return new Uint8Array(content);
}

// Threads need shared memory, which only a page that is isolated has; 0: all.
function threadsOf(wanted) {
  return crossOriginIsolated ? wanted || navigator.hardwareConcurrency : 1;
}

async function ortModule(accelerator) {
  const gpu = accelerator === "webgpu";
  const ort = await import(`${ORT}ort.${gpu ? "webgpu" : "wasm"}.min.mjs`);
  const file = `ort-wasm-simd-threaded.${gpu ? "asyncify." : ""}wasm`;
  return { ort, file };
}

async function openOrt(model, { threads, accelerator }, imported) {
  const { ort, file } = await ortModule(accelerator);
  Object.assign(ort.env.wasm, { wasmPaths: ORT, numThreads: threadsOf(threads), wasmBinary: await bytes(ORT + file) });
  const start = imported();
  const inner = await ort.InferenceSession.create(model, { executionProviders: [accelerator], logSeverityLevel: 3 });
  const [input, output] = [inner.inputNames[0], inner.outputNames[0]];
  const { type, shape } = inner.inputMetadata[0];
  return {
    start,
    type,
    shape: shape.map((length) => (typeof length === "number" ? length : -1)),
    threads: ort.env.wasm.numThreads, // read back: it falls to 1 without shared memory
    version: `onnxruntime-web ${ort.env.versions.web}`,
    prepare: (data, dims) => ({ [input]: new ort.Tensor(type, data, dims) }),
    async run(feeds) {
      const found = (await inner.run(feeds))[output];
      return { data: found.data, dims: found.dims };
    },
  };
}

async function litertModule(threaded) {
  const file = `${LITERT}wasm/litert_wasm_threaded_internal.js`;
  // In a worker its script would take our own address for its own.
  self.Module = { locateFile: (name) => `${LITERT}wasm/${name}`, ...(threaded ? { mainScriptUrlOrBlob: file } : {}) };
  const litert = await import(`${LITERT}dist/index.js`);
  return { litert, runtime: await litert.loadLiteRt(`${LITERT}wasm/`, { threads: threaded }) };
}

async function openLitert(model, { threads, accelerator, versions }, imported) {
  const wanted = threadsOf(threads);
  const { litert, runtime } = await litertModule(wanted > 1);
  const start = imported();
  const options = { accelerator, cpuOptions: { numThreads: wanted }, gpuOptions: { precision: "fp32" } };
  const inner = await litert.loadAndCompile(model, options);
  if (accelerator === "webgpu" && !inner.isFullyAccelerated) {
    throw new Refused("runtime", "LiteRT.js cannot run all of the model by WebGPU");
  }
  const names = Object.keys(inner.signatures).filter((name) => name.startsWith(LENGTH));
  const lengths = names.map((name) => Number(name.slice(LENGTH.length)));
  const [{ dtype, shape }] = inner.getInputDetails();
  return {
    start,
    type: dtype,
    shape: names.length > 1 ? [1, -1] : [...shape],
    least: names.length ? Math.min(...lengths) : undefined,
    threads: wanted > 1 ? Math.min(wanted, runtime.liteRtWasm.getThreadCount()) : 1,
    version: `@litertjs/core ${versions["@litertjs/core"]}`,
    prepare: (data, dims) => ({ data, dims }),
    async run({ data, dims }) {
      const input = new litert.Tensor(data, dims); // copied, as ONNX Runtime copies its feeds
      const runner = names.length > 1 ? [LENGTH + dims[1], [input]] : [[input]];
      const [output] = await inner.run(...runner);
      const found = { data: await output.data(), dims: output.type.layout.dimensions.slice() };
      input.delete();
      output.delete();
      return found;
    },
  };
}

const OPEN = { onnx: openOrt, tflite: openLitert };
const ARRAYS = { uint8: Uint8Array, int32: Int32Array };

function example({ type, shape, least }) {
  const dims = shape.map((length, axis) => (length > 0 ? length : axis ? (least ?? 8) : 1));
  return [new ARRAYS[type](dims.reduce((a, b) => a * b, 1)), dims];
}

function nanoseconds(milliseconds) {
  return Math.round(1e6 * milliseconds);
}

async function software(accelerator) {
  if (accelerator !== "webgpu") return [];
  const { graphics } = await import("./card.js");
  const adapter = await graphics();
  if (!adapter) throw new Refused("adapter", "navigator.gpu gives no adapter");
  return adapter.software ? ["SOFTWARE_GPU"] : [];
}

const operations = {
  async load(request) {
    session = null;
    rows = [];
    const flags = await software(request.accelerator);
    const model = await whole(request.file);
    const before = performance.now();
    let imported = before;
    session = await OPEN[request.runtime](model, request, () => (imported = performance.now()));
    const loaded = performance.now();
    if (!(session.type in ARRAYS)) throw new Refused("runtime", `takes ${session.type}, neither uint8 RGB nor int32 ids`);
    await session.run(session.prepare(...example(session)));
    return {
      import_ns: nanoseconds(imported - before),
      load_ns: nanoseconds(loaded - imported),
      first_inference_ns: nanoseconds(performance.now() - loaded),
      runtime_version: `${session.version} ${request.accelerator}`,
      execution_precision: "f32",
      threads: session.threads,
      input_shape: session.shape,
      flags,
    };
  },

  // All rows lie in one file, one behind the other; shapes are those of each.
  async inputs(request) {
    rows = split(await bytes(request.url), request).map(([data, dims]) => session.prepare(data, dims));
    return { rows: rows.length };
  },

  async block({ n, lead }) {
    const { run } = session;
    for (let i = 0; i < (lead ?? 0); i++) await run(rows[i % rows.length]);
    const latency = new Float64Array(n);
    const start = performance.now();
    for (let i = 0; i < n; i++) {
      const from = performance.now();
      await run(rows[i % rows.length]);
      latency[i] = performance.now() - from;
    }
    const wall = performance.now() - start;
    return { latency_ns: Array.from(latency, nanoseconds), wall_ns: nanoseconds(wall) };
  },

  async score(request) {
    const start = performance.now();
    const outputs = [];
    let told = start;
    for (const [data, dims] of split(await bytes(request.url), request)) {
      const found = await session.run(session.prepare(data, dims));
      if (!(found.data instanceof Float32Array)) throw new Refused("runtime", "the output is not float32");
      outputs.push({ dims: Array.from(found.dims, Number), logits: base64(found.data) });
      if (performance.now() - told > PROGRESS_MS) {
        postMessage({ progress: outputs.length, of: request.shapes.length });
        told = performance.now();
      }
    }
    return { outputs, seconds: (performance.now() - start) / 1000 };
  },

  async runtime({ runtime, versions }) {
    if (runtime === "onnx") return { runtime_version: `onnxruntime-web ${(await ortModule("")).ort.env.versions.web}` };
    await litertModule(false);
    return { runtime_version: `@litertjs/core ${versions["@litertjs/core"]}` };
  },
};

function* rowsOf(buffer, { dtype, shapes }) {
  const kind = ARRAYS[dtype];
  let offset = 0;
  for (const dims of shapes) {
    const length = dims.reduce((a, b) => a * b, 1);
    yield [new kind(buffer, offset, length), dims];
    offset += length * kind.BYTES_PER_ELEMENT;
  }
}

function split(buffer, request) {
  return [...rowsOf(buffer, request)];
}

function base64(array) {
  const raw = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let i = 0; i < raw.length; i += 0x8000) text += String.fromCharCode(...raw.subarray(i, i + 0x8000));
  return btoa(text);
}

function kindOf(error) {
  if (error instanceof Refused) return error.kind;
  return /out of memory|could not allocate|allocation failed|bad_alloc/i.test(String(error)) ? "memory" : "runtime";
}

onmessage = async ({ data: request }) => {
  const { id, op } = request;
  try {
    postMessage({ id, ok: true, ...(await operations[op](request)) });
  } catch (error) {
    postMessage({ id, ok: false, op, kind: kindOf(error), text: String(error?.message ?? error).slice(0, 4000) });
  }
};
